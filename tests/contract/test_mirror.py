"""The tests' folders mirror the packages."""

from __future__ import annotations

import pytest

from tests.contract.mirror import PAGE
from tests.contract.mirror import tests_without_module as without_module
from tests.contract.source import ROOT, code_files

MODULES = {
    "vtr_vllm/cli.py",
    "vtr_vllm/demo/world.py",
    "vtr_vllm/search/__init__.py",
    "server/vtr_server/__main__.py",
    "server/vtr_server/page/app.js",
}


def test_every_test_has_its_module() -> None:
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    page = [path for path in (ROOT / "server").rglob("*") if path.suffix in PAGE]
    modules = {path.relative_to(ROOT).as_posix() for path in page} | set(code_files())
    assert without_module(tests, modules) == []


@pytest.mark.parametrize(
    "test",
    [
        "tests/vtr_vllm/test_world.py",
        "tests/vtr_vllm/demo/test_worlds.py",
        "tests/server/test_cli.py",
        "tests/server/page/test_apps.py",
    ],
)
def test_a_test_in_the_wrong_place_is_found(test: str) -> None:
    assert len(without_module([test], MODULES)) == 1


@pytest.mark.parametrize(
    "test",
    [
        "tests/vtr_vllm/test_cli.py",
        "tests/vtr_vllm/demo/test_world.py",
        "tests/vtr_vllm/test_search.py",
        "tests/vtr_vllm/demo/pictures.py",
        "tests/server/test_main.py",
        "tests/server/page/test_app.py",
        "tests/contract/test_mirror.py",
        "tests/server/robustness/test_aborts.py",
        "tests/conftest.py",
    ],
)
def test_a_test_in_its_place_passes(test: str) -> None:
    assert without_module([test], MODULES) == []
