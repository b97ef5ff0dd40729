"""Entry points lead somewhere, pins say why, and the commands in the texts exist."""

from __future__ import annotations

import tomllib

import pytest

from tests.contract.frame import broken_entry_points, pins_without_reason, unknown_targets
from tests.contract.source import ROOT, code_files, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TEXTS = [path for path in tracked_files() if path.endswith(".md")]


def test_entry_points_lead_somewhere() -> None:
    groups = {**PROJECT["entry-points"], "scripts": PROJECT["scripts"]}
    assert broken_entry_points(groups, code_files()) == []


def test_pins_say_why() -> None:
    assert pins_without_reason((ROOT / "constraints.txt").read_text()) == []


@pytest.mark.parametrize("path", TEXTS)
def test_commands_in_the_texts_exist(path: str) -> None:
    assert unknown_targets((ROOT / path).read_text(), MAKEFILE) == []


def test_tests_of_both_runners_are_where_the_makefile_looks_for_them() -> None:
    """`make test-v2` reads two folders: reading all tests takes as long as running a third of these."""
    folders = ("tests/vtr_vllm/engine", "tests/vtr_vllm/ranking")
    assert f"-m both_runners $(SHARE) {' '.join(folders)} $(ARGS)" in MAKEFILE
    marked = [p for p in tracked_files() if p.startswith("tests/") and p.endswith(".py")]
    marked = [path for path in marked if "mark.both_runners" in (ROOT / path).read_text()]
    elsewhere = [path for path in marked if not path.startswith(folders)]
    assert elsewhere == ["tests/contract/test_frame.py"], "this file, and no other"


def test_a_broken_entry_point_is_found() -> None:
    files = {"a/b.py": "def main(): pass"}
    assert broken_entry_points({"scripts": {"a": "a.b:main"}}, files) == []
    assert len(broken_entry_points({"scripts": {"a": "a.b:other", "c": "a.c:main"}}, files)) == 2


def test_a_pin_without_reason_is_found() -> None:
    assert pins_without_reason("# all of it\na==1 # why\nb==2\nc==3 #\n") == ["b==2", "c==3 #"]


def test_an_unknown_target_is_found() -> None:
    makefile = "serve: ready\n\techo\n"
    assert unknown_targets("`make serve`, then\nmake fly\nto make sure", makefile) == ["fly"]
