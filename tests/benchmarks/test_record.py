"""What a results file holds, and where it lies."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, conversation, host, length, rules, run
from benchmarks.record import measured_with, save


@pytest.mark.parametrize(
    "read", [run.parse, accuracy.parse, conversation.parse, host.parse, length.parse, rules.parse]
)
def test_a_results_file_holds_every_option(read: Callable[[Any], argparse.Namespace]) -> None:
    options = read(["--out", "build/x.json"])
    held = json.loads(json.dumps(measured_with(options)))["options"]
    assert held["out"] == "build/x.json"
    assert set(held) == set(vars(options))


def test_tables_lie_beside_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "found.json"
    save(out, {"rows": [1]}, "| a |")
    assert json.loads(out.read_text()) == {"rows": [1]}
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out == "| a |\n"
