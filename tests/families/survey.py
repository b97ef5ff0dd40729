"""Which of vLLM's multimodal architectures VTR serves, and why not the others.

Read from vLLM's source, not by importing it: some models need packages or devices that are not
here, and docs/models.md must not depend on that. What a checkpoint's configuration decides, and
what no rule here can see, is in ``reasons.py``.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from tests.families.reasons import DECODERS, REASONS, SIGNS
from tests.families.table import FAMILIES
from vtr_vllm.engine.common.supported_models import SUPPORTED_DECODERS

T = TypeVar("T", bound=ast.AST)
UNPROVEN = "fits by form, not yet proven"
RECURRENT = {"IsHybrid", "HasInnerState", "SupportsMambaPrefixCaching"}
LANGUAGE_MODELS = ("language_model", "llm", "model", "text_model")
INPUTS = {"input_ids", "positions", "intermediate_tensors", "inputs_embeds", "self"}
MULTIMODAL, TEXT = "_MULTIMODAL_MODELS", "_TEXT_GENERATION_MODELS"
TRANSFORMERS = ("_TRANSFORMERS_SUPPORTED_MODELS", "_TRANSFORMERS_BACKEND_MODELS")


@dataclass(frozen=True)
class Row:
    """What we say of one architecture."""

    architecture: str
    status: Literal["works", "refused"]
    reason: str
    """Empty for those that work."""
    decoders: tuple[str, ...]
    """vLLM's decoder classes: the proven ones, or those that it has or can have."""


@cache
def survey() -> tuple[Row, ...]:
    """A row for every multimodal architecture of vLLM's registry, in alphabetical order."""
    return tuple(_row(architecture) for architecture in sorted(architectures()))


def _row(architecture: str) -> Row:
    proven = {family.decoder for family in FAMILIES if family.architecture == architecture}
    if proven:
        return Row(architecture, "works", "", tuple(sorted(proven)))
    decoders = _decoders(architecture)
    return Row(architecture, "refused", _why_not(architecture, decoders), decoders)


def _why_not(architecture: str, decoders: tuple[str, ...]) -> str:
    model = _Source(architectures()[architecture])
    if not model.takes_images:
        return "no images: it hears audio only"
    if architecture in REASONS:
        return REASONS[architecture]
    if model.bases & RECURRENT:
        return "its decoder keeps a recurrent state beside the KV cache"
    new = [decoder for decoder in decoders if decoder not in SUPPORTED_DECODERS]
    if new and (extra := model.extra_inputs()):
        return f"its decoder takes more than embeddings: {', '.join(extra)}"
    reasons = [reason for decoder in new if (reason := _why_not_decoder(decoder))]
    if len(reasons) < len(decoders):
        reasons.insert(0, UNPROVEN)
    return "; ".join(reasons)


def _why_not_decoder(decoder: str) -> str:
    own = [cls.name for cls in _Source(decoder).classes if cls.name not in SUPPORTED_DECODERS]
    text = "".join(path.read_text() for path in {_files()[name] for name in own})
    signs = [sign for sign, pattern in SIGNS.items() if re.search(pattern, text)]
    if not signs and not runs_layers_plainly(decoder):
        signs = ["a loop of its own"]
    return f"{decoder} has {', '.join(signs)}" if signs else ""


@cache
def architectures() -> dict[str, str]:
    """Class by architecture: vLLM's own, and those that it runs by Transformers' classes."""
    found = dict(_registry_table(MULTIMODAL))
    for table in TRANSFORMERS:
        for name, cls in _registry_table(table).items():
            if cls.startswith("TransformersMultiModal") and cls.endswith("ForCausalLM"):
                found[name] = cls
    return found


@cache
def _registry_table(name: str) -> dict[str, str]:
    for node in ast.parse((_models() / "registry.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return {key: cls for key, (_, cls) in ast.literal_eval(node.value).items()}
    raise LookupError(f"vLLM's registry has no {name}")


def _models() -> Path:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model_executor" / "models"


@cache
def _files() -> dict[str, Path]:
    """The file of every model class of vLLM: not of draft models, and of each device's own NVIDIA's."""
    packages = _models().parent.parent / "models"
    files = [
        *packages.rglob("nvidia/*.py"),
        *packages.rglob("common/*.py"),
        *_models().rglob("*.py"),
    ]
    declared = re.compile(r"^class (\w+)", re.MULTILINE)
    return {
        name: path
        for path in files
        if not re.search("eagle[0-9]*$|mtp|dspark", path.stem)
        for name in declared.findall(path.read_text())
    }


@cache
def _class(name: str) -> ast.ClassDef:
    for node in ast.parse(_files()[name].read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise LookupError(name)


class _Source:
    """What the source says of one class and its parents."""

    def __init__(self, name: str) -> None:
        self.classes = list(_with_parents(name))
        self.bases = {base for cls in self.classes for base in _bases(cls)}
        self.files = {_files()[cls.name] for cls in self.classes}

    @property
    def takes_images(self) -> bool:
        return any(re.search(r"image|video", path.read_text()) for path in self.files)

    def methods(self, name: str) -> list[ast.FunctionDef]:
        """The method that a call would find, and then those that it can call by ``super``."""
        return [
            node
            for cls in self.classes
            for node in cls.body
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]

    def extra_inputs(self) -> list[str]:
        """Names of the arguments of the decoder's call that are not the usual four."""
        names = {
            keyword.arg
            for node in _nodes(self.methods("forward")[:1], ast.Call)
            if _is_language_model(node.func)
            for keyword in node.keywords
        }
        return sorted(name for name in names if name and name not in INPUTS)

    def language_model(self) -> str | None:
        """The class that ``__init__`` makes the language model of, as far as it names one."""
        for node in _nodes(self.methods("__init__")[:1], ast.Assign):
            if isinstance(node.value, ast.Call) and _is_language_model(node.targets[0]):
                call = ast.unparse(node.value)
                if named := re.search(r"architectures=\['(\w+)'\]", call):
                    return _registry_table(TEXT)[named.group(1)]
                if (called := call.split("(")[0]) in _files():
                    return called
        return None


def runs_layers_plainly(decoder: str) -> bool:
    """Whether its loop is ``layer(positions, hidden_states, residual)``, and then the final norm."""
    forwards = [ast.unparse(forward) for forward in _Source(decoder).methods("forward")]
    loop = next((forward for forward in forwards if "super().forward" not in forward), "")
    layers = re.findall(r" = layer\((.*?)\)", loop)
    plain = re.compile(r"positions, hidden_states, residual(, \*\*\w+)?")
    norm = "hidden_states, _ = self.norm(hidden_states, residual)" in loop
    changed = re.search(
        r"\b(hidden_states|inputs_embeds) ([*+]=|= .* [*+] )|[*+] hidden_states", loop
    )
    return bool(layers and norm and not changed) and all(plain.fullmatch(call) for call in layers)


def _nodes(trees: Sequence[ast.AST], kind: type[T]) -> Iterator[T]:
    return (node for tree in trees for node in ast.walk(tree) if isinstance(node, kind))


def is_class(name: str) -> bool:
    """Whether a model file of vLLM's declares it."""
    return name in _files()


def _is_language_model(node: ast.expr) -> bool:
    parts = ast.unparse(node).split(".")
    return parts[0] == "self" and parts[-1] in LANGUAGE_MODELS


def _with_parents(name: str) -> Iterator[ast.ClassDef]:
    """A class and its parents in vLLM's model files, the nearest first, without the interfaces."""
    if name in _files() and _files()[name].name != "interfaces.py":
        yield _class(name)
        for base in _bases(_class(name)):
            yield from _with_parents(base)


def _bases(cls: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).split("[")[0].rsplit(".", 1)[-1] for base in cls.bases]


def _decoders(architecture: str) -> tuple[str, ...]:
    if architecture in DECODERS:
        return DECODERS[architecture]
    named = _Source(architectures()[architecture]).language_model()
    return (_inner(named),) if named else ()


def _inner(name: str) -> str:
    """The decoder in a class with a head; some make it in a method for their children to override."""
    if name.endswith("Model"):
        return name
    source = _Source(name)
    if inner := source.language_model():
        return inner
    for made in source.methods("_init_model"):
        if found := re.search(r"return (\w+Model)\(", ast.unparse(made)):
            return found.group(1)
    return name
