"""Tables and heat map of a results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.rankings.layers import ATTENTION_RULES
from benchmarks.rankings.tables import draw, render
from tests.benchmarks.rankings.comparisons import comparison


def layers() -> dict[str, Any]:
    tau = [[1.0, 0.1, 0.2], [0.1, 1.0, 0.75], [0.2, 0.75, 1.0]]
    return {
        "tau": dict.fromkeys(ATTENTION_RULES, tau),
        "tau_half_interval": dict.fromkeys(ATTENTION_RULES, 0.01),
        "overlap": dict.fromkeys(ATTENTION_RULES, tau),
        "targets": {"last": {"0.1": [0.1, 0.2, 0.3]}, "cls": {"0.1": [0.4]}},
    }


def test_tables() -> None:
    """Every row has its header's columns; a form of one cut is not shown as a difference."""
    meta = {
        "date": "then",
        "cpu": "a CPU",
        "commit": "0",
        "model": "demo",
        "split": "test",
        "samples": 3,
        "n": 10,
    }
    compared = [comparison(0.75), comparison(0.5)]
    engine = {"dtype": "float32", "full": 0.99, "pairs": compared}
    text = render({"meta": meta, "layers": layers(), "engine": engine})
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| `last` | 0.35 | 0.75 | 0.75 | 0.10 | 0.75 | 1 of 3 | 0.35 | ±0.010 |" in text
    assert "| `cls` | 10% | 0.40 |  |  |" in text
    one_cut, three_cuts = (line for line in text.splitlines() if line.startswith("| p-sigmoid"))
    assert "one cut: the same" in one_cut
    assert "+0.200 [" in three_cuts


def test_heat_map(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tau.png"
    draw(layers(), path)
    image = Image.open(path).convert("RGB")
    assert image.width > image.height > 100
    assert len(image.getcolors(1 << 20) or []) > 10
    assert path.stat().st_size < 100_000


def test_a_heat_map_of_many_layers_has_no_numbers(tmp_path: Path) -> None:
    """Of 30 layers they could not be read; the picture is of the same size."""
    deep = np.full((30, 30), 0.5).tolist()
    draw({"tau": dict.fromkeys(ATTENTION_RULES, deep)}, tmp_path / "deep.png")
    image = Image.open(tmp_path / "deep.png").convert("RGB")
    draw(layers(), tmp_path / "few.png")
    assert image.size == Image.open(tmp_path / "few.png").size
