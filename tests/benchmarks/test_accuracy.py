"""The accuracy table: what is asked, and how sure an answer is."""

from __future__ import annotations

import pytest

from benchmarks.accuracy import BUDGETS, FORMS, Score, render, rows
from vtr_vllm.schedules import ModelGeometry

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)


def test_every_form_at_every_budget_or_not_reachable() -> None:
    table = rows(GEOMETRY, None)
    assert table[0].form == "full"
    assert len(table) == 1 + len(BUDGETS) * len(FORMS)
    missing = {(row.form, row.budget) for row in table if row.schedule is None}
    assert missing == {("fastv", 0.125), ("pdrop", 0.125), ("random", 0.125)}


def test_wilson_interval() -> None:
    score = Score()
    for i in range(100):
        score.add("color", i < 90)
    assert score.interval() == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert score.kinds["color"] == [100, 90]


def test_an_unreachable_form_is_said_to_be() -> None:
    meta = {"n": 10, "date": "then", "cpu": "a CPU", "commit": "0", "dtype": "float32"}
    row = {"form": "fastv", "budget": 0.125, "least_budget": 2 / 12}
    text = render({"meta": {**meta, "splits": ["test", "test-hard"]}, "rows": [row]})
    line = text.splitlines()[-1]
    assert "not reachable (least 0.167)" in line
    assert line.count("|") == text.splitlines()[-2].count("|")
