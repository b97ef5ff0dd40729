"""The import rule: which part of the package may import which, and which libraries."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

from tests.contract.source import Import, imports

_BESIDE_THE_ENGINE = {
    *(
        "adaptive",
        "checkpoint_digest",
        "command_line",
        "demo",
        "engine",
        "engine_settings",
        "errors",
    ),
    *("faults", "image_files", "preflight", "ranking", "reduction", "schedules", "search_options"),
    "whole_file",
}

# part -> the other parts of ours that it may import. Parts not named here may import nothing of
# ours; `vtr_vllm` stands for the package's own __init__.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "upload": set(),
    "whole_file": set(),
    "checkpoint_digest": set(),
    "ranking": {"errors", "upload"},
    "schedules": {"errors", "ranking", "whole_file"},
    "adaptive": {"errors", "schedules", "whole_file"},
    "tensor_file": {"whole_file"},
    "atp": {"errors", "schedules", "tensor_file", "whole_file"},
    "image_files": {"errors"},
    "faults": {"errors"},
    "search_options": {"errors", "faults"},
    "command_line": set(),
    "engine_settings": {"errors"},
    "preflight": {"atp", "command_line", "engine", "errors", "schedules"},
    "reduction": {"errors", "ranking", "schedules", "upload"},
    "engine": {
        *("adaptive", "atp", "checkpoint_digest", "engine_settings", "errors"),
        *("ranking", "reduction", "schedules", "upload"),
    },
    "demo": set(),
    "own_models": {"errors"},
    "photo": {"errors"},
    "search": _BESIDE_THE_ENGINE | {"own_models", "photo"},
    "server": _BESIDE_THE_ENGINE | {"own_models"},
    "cli": {
        *("command_line", "demo", "engine_settings", "errors", "own_models", "preflight"),
        *("reduction", "schedules", "search", "server", "training", "vtr_vllm"),
    },
    "benchmarks": {
        "adaptive",
        "atp",
        "checkpoint_digest",
        "image_files",
        "errors",
        "ranking",
        "schedules",
        "reduction",
        "engine",
        "engine_settings",
        "demo",
        "own_models",
        "photo",
        "search",
        "server",
    },
    "training": {
        *("atp", "checkpoint_digest", "command_line", "demo", "engine", "errors", "image_files"),
        *("photo", "preflight", "schedules", "search", "search_options", "tensor_file"),
        "whole_file",
    },
    "vtr_vllm": {"errors", "schedules"},
}

# folder of the engine -> the other folders of it that may be imported. Each runs in a process of its
# own, so what one imports of another would be loaded where it never runs; files beside the folders
# (the entry point, set-up) may import all.
PROCESSES: dict[str, set[str]] = {
    "common": set(),
    "frontend": {"common"},
    "scheduler": {"common"},
    "worker": {"common"},
}

# library -> the folders (ending in /) and files that may import it.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "vllm": (
        "vtr_vllm/engine/",
        "server/vtr_server/vllm_api/",
        "server/vtr_server/media/connector.py",
        "server/vtr_server/media/readers.py",
        "vtr_vllm/search/vllm_evaluator.py",
        "benchmarks/",
    ),
    "skopt": ("vtr_vllm/search/",),
    "sklearn": (
        "vtr_vllm/photo/scenes.py",
        "vtr_vllm/search/adaptive/fitting.py",
        "vtr_vllm/training/atp/distil.py",
    ),
    "gguf": ("vtr_vllm/photo/language.py",),
    "onnx": ("vtr_vllm/photo/tower.py",),
    "prometheus_client": ("server/vtr_server/operations/",),
    "fastapi": ("server/",),
    "starlette": ("server/",),
}
IN_ONE_FILE = ("skopt",)

# These load in milliseconds, or must run where torch is absent.
WITHOUT_TORCH = (
    "vtr_vllm/__init__.py",
    "vtr_vllm/errors.py",
    "vtr_vllm/faults.py",
    "vtr_vllm/cli.py",
    "vtr_vllm/command_line.py",
    "vtr_vllm/image_files.py",
    "vtr_vllm/adaptive/",
    "vtr_vllm/atp/__init__.py",
    "vtr_vllm/atp/facts.py",
    "vtr_vllm/own_models.py",
    "vtr_vllm/preflight.py",
    "vtr_vllm/schedules/",
    "vtr_vllm/search_options.py",
    "vtr_vllm/whole_file.py",
    "vtr_vllm/demo/__init__.py",
)


def part_of(path: str) -> str:
    """Return the part that a file belongs to: `vtr_vllm/engine/worker/model.py` -> `engine`."""
    parts = PurePosixPath(path).with_suffix("").parts
    if parts[0] != "vtr_vllm":
        return parts[0]
    return parts[0] if parts[1] == "__init__" else parts[1]


def part_imported(found: Import) -> str | None:
    """Return the part of ours that an import reaches, None for a library."""
    parts = found.name.split(".")
    if parts[0] == "vtr_server":
        return "server"
    if parts[0] == "benchmarks":
        return parts[0]
    if parts[0] != "vtr_vllm":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "vtr_vllm"


def is_under(path: str, places: tuple[str, ...]) -> bool:
    """Return whether a file is one of the places or lies in a folder among them."""
    return any(path.startswith(place) if place.endswith("/") else path == place for place in places)


def upward_imports(files: dict[str, str]) -> list[str]:
    """Return every import that does not go down."""
    said = []
    for path, text in files.items():
        part = part_of(path)
        for found in imports(path, text):
            reached = part_imported(found)
            # `from vtr_vllm import errors` yields vtr_vllm and vtr_vllm.errors: the second counts.
            if reached in (None, part) or found.name == "vtr_vllm":
                continue
            if reached not in ALLOWED.get(part, set()):
                said.append(f"{path}:{found.line} {part} imports {reached} ({found.name})")
    return said


def imports_of_other_processes(files: dict[str, str]) -> list[str]:
    """Return every import by which one process's folder of the engine reaches another's."""
    said = []
    for path, text in files.items():
        parts = PurePosixPath(path).parts
        if parts[:2] != ("vtr_vllm", "engine") or len(parts) < 4:
            continue
        allowed = {parts[2], *PROCESSES.get(parts[2], set())}
        for found in imports(path, text):
            names = found.name.split(".")
            folder = names[2] if names[:2] == ["vtr_vllm", "engine"] and len(names) > 2 else None
            if folder is not None and folder not in allowed:
                said.append(f"{path}:{found.line} {parts[2]} imports {folder} ({found.name})")
    return said


def cycles(files: dict[str, str]) -> list[list[str]]:
    """Return every circle of modules that import each other, at their top or in functions."""
    modules = {module_of(path): path for path in files}
    graph = {
        name: {found.name for found in imports(path, files[path])} & set(modules) - {name}
        for name, path in modules.items()
    }
    # A package's own __init__ is imported with each of its modules: what it imports late is its way
    # to name them, and no circle.
    packages = {name for name, path in modules.items() if path.endswith("__init__.py")}
    graph = {name: reached - packages for name, reached in graph.items() if name not in packages}
    said = []
    while True:
        leaves = {name for name, reached in graph.items() if not reached & set(graph)}
        if not leaves:
            break
        graph = {name: reached for name, reached in graph.items() if name not in leaves}
    for name in sorted(graph):  # what is left lies on a circle or above one
        trail = [name]
        while trail[-1] not in trail[:-1]:
            trail.append(min(graph[trail[-1]] & set(graph)))
        circle = trail[trail.index(trail[-1]) :]
        if name == min(circle):
            said.append(circle)
    return said


def module_of(path: str) -> str:
    """Return the dotted name of a file: `server/vtr_server/plugin.py` -> `vtr_server.plugin`."""
    parts = PurePosixPath(path).with_suffix("").parts
    parts = parts[1:] if parts[0] == "server" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def misplaced_libraries(files: dict[str, str]) -> list[str]:
    """Return every import of a library outside the places that own it."""
    said = []
    users: dict[str, set[str]] = defaultdict(set)
    for path, text in files.items():
        for found in imports(path, text):
            for library, places in LIBRARIES.items():
                if found.is_within(library):
                    users[library].add(path)
                    if not is_under(path, places):
                        said.append(f"{path}:{found.line} imports {library}")
            if found.is_within("torch") and is_under(path, WITHOUT_TORCH):
                said.append(f"{path}:{found.line} imports torch")
    for library in IN_ONE_FILE:
        if len(users[library]) > 1:
            said.append(f"{library} is imported in {sorted(users[library])}: one file may")
    return sorted(set(said))
