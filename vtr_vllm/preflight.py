"""Why a start cannot succeed, found before anything is loaded.

Neither torch nor vllm is imported here. What only they can tell (flags of vLLM's, the sizes of a
model whose config leaves them to a default) is checked by ``vtr_server.vllm_api.launch``, in the process
that loads them anyway, before it loads a model.
"""

import errno
import json
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtr_vllm.atp.facts import WEIGHTS, Facts
from vtr_vllm.command_line import is_on, value_of
from vtr_vllm.errors import ConfigurationError, UnsupportedModel
from vtr_vllm.schedules import ModelGeometry, Schedule, ScheduleBook

__all__ = [
    "check_address",
    "check_batch_files",
    "check_front_end",
    "check_model",
    "check_modules",
    "check_schedules",
    "known_geometry",
]

DEFAULT_PORT = 8000  # vLLM's

_CONFIGS = ("config.json", "params.json")
"""Of a model in Hugging Face's form, and in Mistral's."""
_OTHER_CONFIG = ("--hf-config-path", "--hf-overrides", "--config-format", "--config")
"""Flags of vLLM's with which a model's config.json is not, or not all, that counts."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


def check_model(model: str, flags: Sequence[str], environ: Mapping[str, str]) -> None:
    """Refuse a model that is not there, or that we cannot reduce; raises ConfigurationError.

    A name on a hub is looked up in its cache only, and refused only where nothing may be fetched.
    """
    path = Path(model)
    if path.is_dir():
        config = _config(path)
        if config is None:
            if not any(value_of(flag, flags) for flag in _OTHER_CONFIG):
                raise ConfigurationError(
                    f"model folder {model} has no {' or '.join(_CONFIGS)}; name the folder of a model"
                )
            return
        _check_architecture(model, config, flags)
    elif path.exists() or "://" in model:
        return
    elif environ.get("VLLM_USE_MODELSCOPE", "").upper() in _TRUE:
        return  # another hub, with other names
    elif not _HUB_NAME.fullmatch(model):
        raise ConfigurationError(
            f"model folder {model} is not there; name one that is, or a model as OWNER/NAME"
        )
    elif environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE and not _is_cached(model, flags):
        raise ConfigurationError(
            f"model {model} is neither a folder nor in the cache, and HF_HUB_OFFLINE forbids to"
            " fetch it; name a folder, or unset HF_HUB_OFFLINE"
        )


def known_geometry(model: str, flags: Sequence[str]) -> ModelGeometry | None:
    """The sizes of a model in a folder whose config.json states all of them; else None."""
    config = _config(Path(model)) if Path(model).is_dir() else None
    if config is None or any(value_of(flag, flags) for flag in _OTHER_CONFIG):
        return None
    text = config.get("text_config", config)
    stated = {"num_key_value_heads", "head_dim"}  # absent, a default of the model's class counts
    if not isinstance(text, dict) or not stated <= set(text):
        return None
    try:
        return ModelGeometry.from_config(text)
    except UnsupportedModel:
        return None


def check_schedules(
    folder: Path | None,
    geometry: ModelGeometry | None,
    may_be_empty: bool = False,
    modules: Sequence[int] = (),
) -> None:
    """Refuse a folder that the server would refuse, or offer nothing from; raises ScheduleError.

    Without a geometry the schedules must at least be of one model. ``may_be_empty``: the server's
    search jobs will fill it. ``modules``: layers before which there are trained ones.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise ConfigurationError(f"--schedules {folder} is no folder; create it or name another")
    first = next(iter(sorted(folder.glob("*.json"))), None)
    if first is not None:
        known = geometry or Schedule.load(first).geometry
        ScheduleBook.from_folder(known, folder, modules=modules)
    elif not may_be_empty:
        raise ConfigurationError(
            f"--schedules {folder} has no schedule (*.json) in it; put some there, or leave it out:"
            " budgets then run the built-in forms"
        )


def check_modules(folder: Path | None, geometry: ModelGeometry | None) -> Facts | None:
    """Refuse trained modules that no engine of this model would take; raises VTRError."""
    if folder is None:
        return None
    facts = Facts.load(folder)
    facts.check_served()
    if not (folder / WEIGHTS).is_file():
        raise ConfigurationError(
            f"--atp {folder} has no {WEIGHTS}; name a folder that `vtr train atp` has finished"
        )
    if geometry is not None:
        facts.check_geometry(geometry)
    return facts


def check_address(flags: Sequence[str], admin: tuple[str, int] | None) -> None:
    """Refuse ports that cannot be had; ``admin`` is a second address. Raises ConfigurationError."""
    port = value_of("--port", flags)
    fixed = value_of("--uds", flags) is None and (port or value_of("--config", flags) is None)
    number = int(port) if port and port.isdigit() else DEFAULT_PORT
    if fixed and (port is None or port.isdigit()):
        _check_free("--host", value_of("--host", flags) or "", "--port", number)
    if admin is None or admin[1] == 0:
        return
    if fixed and admin[1] == number:
        raise ConfigurationError(
            f"[admin] port {number} is the server's own; give the admin routes another"
        )
    _check_free("[admin] host", admin[0], "[admin] port", admin[1])


def check_front_end(flags: Sequence[str], environ: Mapping[str, str]) -> None:
    """Refuse front ends of vLLM's that know no plugins; raises ConfigurationError."""
    for given, name in (
        (is_on("--grpc", flags), "--grpc"),
        (environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"), "VLLM_USE_RUST_FRONTEND"),
    ):
        if given:
            raise ConfigurationError(
                f"{name} starts a front end of vLLM's that loads no plugins, so without budgets,"
                " keys and limits; leave it out"
            )


def check_batch_files(source: str, target: str) -> None:
    """Refuse a batch whose lines cannot be read, or answers not be written."""
    if "://" not in source and not Path(source).is_file():
        raise ConfigurationError(f"-i {source}: there is no such file; name one, or a URL")
    if "://" not in target and not Path(target).absolute().parent.is_dir():
        raise ConfigurationError(f"-o {target}: there is no such folder; create it first")


def _check_architecture(model: str, config: dict[str, Any], flags: Sequence[str]) -> None:
    from vtr_vllm.engine.common.supported_models import SUPPORTED_ARCHITECTURES

    named = config.get("architectures")
    if not isinstance(named, list) or not named or value_of("--hf-overrides", flags):
        return
    if not set(SUPPORTED_ARCHITECTURES) & set(map(str, named)):
        raise UnsupportedModel(
            f"model {model} is a {', '.join(map(str, named))}, which VTR cannot reduce; it can"
            f" {', '.join(SUPPORTED_ARCHITECTURES)}; `vllm serve` serves others"
        )


def _config(folder: Path) -> dict[str, Any] | None:
    """config.json of a model; empty where only Mistral's form is there, None without either."""
    for name in _CONFIGS:
        file = folder / name
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise ConfigurationError(f"model config {file} cannot be read ({err})") from err
        if not isinstance(config, dict):
            raise ConfigurationError(f"model config {file} is no JSON object")
        return config if name == _CONFIGS[0] else {}
    return None


def _is_cached(model: str, flags: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    folder, revision = value_of("--download-dir", flags), value_of("--revision", flags)
    found = (
        try_to_load_from_cache(model, name, cache_dir=folder or None, revision=revision or None)
        for name in _CONFIGS
    )
    return any(isinstance(path, str) for path in found)


def _check_free(host_name: str, host: str, port_name: str, port: int) -> None:
    """Bind as the server will, but for sharing: vLLM would share a port with another vLLM."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            if err.errno == errno.EADDRINUSE:
                said = f"{port_name} {port} is in use; end what listens there, or give another"
            elif err.errno == errno.EACCES:
                said = (
                    f"{port_name} {port} needs rights that this user has not; give one above 1023"
                )
            else:
                said = f"{host_name} {host} is no address of this machine ({err.strerror})"
            raise ConfigurationError(said) from err
        except OverflowError as err:
            raise ConfigurationError(f"{port_name} {port} is above 65535; give another") from err
