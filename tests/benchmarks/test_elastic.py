"""The table and the plot say what the results file says; the shape is what its text says."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.elastic import SHAPE, plot, table
from benchmarks.towers import tower_flops
from tests.tiny import model_config
from vtr_vllm.schedules import ModelGeometry, prefill_flops


def row(policy: str, load: float, p95: float, spent: float | None) -> dict[str, Any]:
    return {
        "policy": policy,
        "load": load,
        "rate_rps": 3 * load,
        "ttft_p50_s": 0.5,
        "ttft_p95_s": p95,
        "goodput_rps": 2.5,
        "in_time": 0.975,
        "mean_budget": spent,
        "gave_up": 3,
        "errors": 0,
        "foreign_cores": 0.02,
    }


RESULTS = {
    "meta": {
        "date": "2026-01-01",
        "cpu": "a CPU",
        "cores": 2,
        "commit": "abc",
        "dtype": "bfloat16",
        "seconds": 120,
        "lead_in": 30,
    },
    "capacity_rps": 3.0,
    "unloaded_ttft_s": 0.33,
    "objective_s": 1.0,
    "cells": [row("1.0", 2, 10.0, None), row("auto", 2, 0.8, 0.26), row("auto", 1, 0.7, 0.44)],
}


def test_a_time_beyond_the_patience_is_shown_as_a_bound() -> None:
    lines = table(RESULTS).splitlines()
    assert "| 2x | 6.00 | 1.0 | 0.50 | > 10.0 | 97.5% | 2.50 |  | 3 | 0 |" in lines
    assert "| 2x | 6.00 | auto | 0.50 | 0.80 | 97.5% | 2.50 | 0.26 | 3 | 0 |" in lines


def test_a_cell_that_no_request_came_to_is_empty() -> None:
    nothing = row("auto", 1, 0.7, None) | dict.fromkeys(("ttft_p50_s", "ttft_p95_s", "in_time"))
    assert "| 1x | 3.00 | auto |  |  |  | 2.50 |  | 3 | 0 |" in table(
        RESULTS | {"cells": [nothing]}
    )


def test_each_policy_has_a_line_over_the_load() -> None:
    times, _, spent = plot(RESULTS).axes
    lines = {line.get_label(): line for line in times.get_lines()}
    assert list(lines["auto"].get_xdata()) == [1, 2]
    assert list(lines["auto"].get_ydata()) == [0.7, 0.8]
    assert set(lines["objective"].get_ydata()) == {1.0}
    assert [list(line.get_ydata()) for line in spent.get_lines()] == [[0.44, 0.26], []]


def test_the_tower_has_its_share() -> None:
    config = model_config(SHAPE, "bfloat16")
    geometry = ModelGeometry.from_config(config["text_config"])
    decoder = prefill_flops(geometry, [SHAPE.vision_tokens] * geometry.layers, 31)
    tower = tower_flops(config, SHAPE.image)
    assert tower / (tower + decoder) == pytest.approx(0.041, abs=0.005)
