"""The number of evaluations is counted as it is claimed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.bayes import (
    STRETCH,
    evaluations_until,
    families,
    measure,
    median_count,
    parse,
    random_points,
    render,
    values_of,
)
from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.search.sigmoid_search import PARALLEL, search_sigmoid
from vtr_vllm.search.study import Study

LAYERS, N_VISION = 8, 24


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    data = items(tmp_path_factory.mktemp("bayes"), 50)
    return study(SimulatedEvaluator(LAYERS, (N_VISION,)), data)


def test_random_points_fill_the_box_that_is_searched() -> None:
    dimensions = families(12)["k, alpha, first"].dimensions(12)
    points = random_points(dimensions, 400, 0)
    assert points == random_points(dimensions, 400, 0)
    assert points != random_points(dimensions, 400, 1)
    for place, d in enumerate(dimensions):
        values = [point[place] for point in points]
        assert d.low <= min(values) < max(values) <= d.high
        middle = math.sqrt(d.low * d.high) if d.log else (d.low + d.high) / 2
        assert 160 < sum(value < middle for value in values) < 240


def test_families_differ_in_the_first_cut() -> None:
    paper, blind = families(12).values()
    assert not paper.blind
    assert replace(paper, blind=True) == blind


def test_evaluations_are_counted_up_to_the_first_that_is_there(searched: Study) -> None:
    family = families(LAYERS)["k, alpha"]
    trials = search_sigmoid(searched, "check", family, 0.4, [], STRETCH, None, 0)
    values = [trial.value for trial in trials]
    target = max(values)
    count = evaluations_until(searched, family, 0.4, target, STRETCH, 0)
    assert count == values.index(target) + 1
    assert evaluations_until(searched, family, 0.4, values[0], STRETCH, 0) == 1
    assert evaluations_until(searched, family, 0.4, 1.0, STRETCH, 0) is None
    assert STRETCH % PARALLEL == 0  # or going on would not give the same trials


def test_a_row_compares_with_the_best_random_point(searched: Study) -> None:
    row = measure(searched, "k, alpha", 0.4, points=12, seeds=1, limit=STRETCH)
    family = families(LAYERS)["k, alpha"]
    points = random_points(family.dimensions(LAYERS), 12, 0)
    values = values_of(searched, family, 0.4, points)
    assert row["best"] == max(values) == values[row["at"] - 1]
    assert row["reached"] == [
        evaluations_until(searched, family, 0.4, row["best"], STRETCH, seed) for seed in range(1)
    ]


@pytest.mark.parametrize(
    ("reached", "half"),
    [([5, 9, None], 9), ([None, 5, None], math.inf), ([4, 8], 6), ([3, 5, 7, None], 6)],
)
def test_a_seed_that_is_never_there_counts_as_infinite(reached: list[Any], half: float) -> None:
    assert median_count(reached) == half


def test_the_table_says_where_the_limit_was_met() -> None:
    meta = {
        "date": "today",
        "cpu": "a CPU",
        "commit": "abc",
        "items": 50,
        "points": 200,
        "limit": 60,
    }
    row = {"family": "k, alpha", "budget": 0.25, "best": 0.8, "median": 0.6, "at": 3}
    text = render({"meta": meta, "rows": [{**row, "reached": [12, None, 20]}]})
    assert "| k, alpha | 0.25 | 0.6000 | 0.8000 | 12, >60, 20 | 20 |" in text
    text = render({"meta": meta, "rows": [{**row, "reached": [12, None, None]}]})
    assert text.endswith("| 12, >60, >60 | >60 |")


def test_a_folder_must_be_given() -> None:
    with pytest.raises(SystemExit):
        parse([])
    assert parse(["--folder", "data", "--budget", "0.5"]).budget == [0.5]
