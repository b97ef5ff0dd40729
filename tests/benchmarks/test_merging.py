"""The same counts, dropped or merged."""

from __future__ import annotations

import pytest

from benchmarks.merging import dropping, merging, table
from vtr_vllm.schedules import ModelGeometry, explicit

GEOMETRY = ModelGeometry(4, 64, 128, 4, 2, 16)
MADE = explicit(GEOMETRY, (0.8, 0.8, 0.5, 0.2), ["diverse+nearest", "last", "previous"])


def test_each_merge_stands_where_it_can() -> None:
    dropped = dropping(MADE)
    assert [str(rule) for rule in dropped.rules] == ["diverse", "last", "previous"]
    assert dropped.keep == MADE.keep
    nearest, scored = merging(dropped, "nearest"), merging(dropped, "scored")
    assert nearest is not None
    assert [str(rule) for rule in nearest.rules] == [
        "diverse+nearest",
        "last+nearest",
        "previous+nearest",
    ]
    assert scored is not None
    assert [str(rule) for rule in scored.rules] == ["diverse", "last+scored", "previous"]


def test_where_no_rule_can_merge_so_there_is_nothing_to_run() -> None:
    assert merging(dropping(explicit(GEOMETRY, (0.5,) * 4, ["diverse"])), "scored") is None


@pytest.mark.parametrize("names", [["nearest", "scored"]])
def test_a_row_has_what_each_merge_adds(names: list[str]) -> None:
    common = {"split": "test", "schedule": "divprune-0.25"}
    rows = [
        common | {"merge": "", "right": [0.8, 0.78, 0.82]},
        common | {"merge": "nearest", "right": [0.81, 0.79, 0.83], "difference": [0.01, 0, 0.02]},
    ]
    assert table(rows, names).splitlines()[2] == (
        "| test | divprune-0.25 | 80.0 [78.0, 82.0] | +1.0 [+0.0, +2.0] | – |"
    )
