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


def test_a_broken_entry_point_is_found() -> None:
    files = {"a/b.py": "def main(): pass"}
    assert broken_entry_points({"scripts": {"a": "a.b:main"}}, files) == []
    assert len(broken_entry_points({"scripts": {"a": "a.b:other", "c": "a.c:main"}}, files)) == 2


def test_a_pin_without_reason_is_found() -> None:
    assert pins_without_reason("# all of it\na==1 # why\nb==2\nc==3 #\n") == ["b==2", "c==3 #"]


def test_an_unknown_target_is_found() -> None:
    makefile = "serve: ready\n\techo\n"
    assert unknown_targets("`make serve`, then\nmake fly\nto make sure", makefile) == ["fly"]
