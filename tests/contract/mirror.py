"""Tests lie where the tested module lies."""

from __future__ import annotations

from pathlib import PurePosixPath

MIRRORED = ("vtr_vllm", "server", "benchmarks")
PAGE = (".js", ".html", ".css")
WHOLE = PurePosixPath("tests/server/robustness")
"""Tests of a running server as a whole: of no module more than of another."""


def tests_without_module(tests: list[str], modules: set[str]) -> list[str]:
    """Return every test file whose path names no module.

    `tests/vtr_vllm/demo/test_world.py` belongs to `vtr_vllm/demo/world.py`, or to a package
    `vtr_vllm/demo/world/`, and `test_main.py` to `__main__.py`; `tests/server/page/test_app.py` belongs to the page's `app.js` in `server/vtr_server/`. Helpers
    and fixtures (no `test_` in front) may lie anywhere.
    """
    said = []
    for test in tests:
        path = PurePosixPath(test)
        mirrors = path.parts[1] in MIRRORED and path.parent != WHOLE
        if not mirrors or not path.name.startswith("test_"):
            continue
        folder = PurePosixPath(*path.parts[1:-1])
        if folder.parts[0] == "server":  # the folder holds the package, and no more
            folder = PurePosixPath("server", "vtr_server", *folder.parts[1:])
        module = folder / path.name.removeprefix("test_")
        named = {str(module), str(module.with_suffix("") / "__init__.py")}
        named.add(str(module.with_name(f"__{module.stem}__.py")))
        if not (named | {str(module.with_suffix(suffix)) for suffix in PAGE}) & modules:
            said.append(f"{test}: no {module}")
    return said
