"""The number of evaluations is counted as it is claimed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from benchmarks.bayes import (
    STRETCH,
    expected_draws,
    families,
    first_at,
    measure,
    median_count,
    parse,
    random_points,
    render,
    search_until,
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


def test_a_search_goes_on_until_it_is_there(searched: Study) -> None:
    family = families(LAYERS)["k, alpha"]
    trials = search_sigmoid(searched, "check", family, 0.4, [], STRETCH, None, 0)
    values = [trial.value for trial in trials]
    assert search_until(searched, family, 0.4, max(values), 3 * STRETCH, 0) == values
    further = search_until(searched, family, 0.4, 1.0, 2 * STRETCH, 0)
    assert further[:STRETCH] == values
    assert len(further) == 2 * STRETCH
    assert STRETCH % PARALLEL == 0  # or going on would not give the same trials


def test_evaluations_are_counted_up_to_the_first_that_is_there() -> None:
    assert first_at([0.1, 0.5, 0.3, 0.5], 0.5) == 2
    assert first_at([0.1, 0.5], 0.5 + 1e-10) == 2  # rounding
    assert first_at([0.1, 0.5], 0.51) is None


def test_expected_draws_are_the_mean_over_all_orders() -> None:
    values = [0.1, 0.2, 0.5, 0.7, 0.6]
    orders = list(permutations(values))
    mean = sum(first_at(order, 0.5) or 0 for order in orders) / len(orders)
    assert expected_draws(values, 0.5) == pytest.approx(mean)


def test_a_row_compares_with_the_best_random_point(searched: Study) -> None:
    row = measure(searched, "k, alpha", 0.4, points=12, seeds=1, limit=STRETCH)
    family = families(LAYERS)["k, alpha"]
    points = random_points(family.dimensions(LAYERS), 12, 0)
    values = values_of(searched, family, 0.4, points)
    run = search_until(searched, family, 0.4, max(values), STRETCH, 0)
    assert row["best"] == max(values)
    assert row["reached"] == [first_at(run, max(values))]
    assert row["near"] == [first_at(run, max(values) - 1 / 50)]
    assert row["near_random"] == expected_draws(values, max(values) - 1 / 50)
    assert row["searched_best"] == [max(run)]


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
    row = {"family": "k, alpha", "budget": 0.25, "best": 0.8, "median": 0.6}
    row |= {"near": [8, 9, 10], "near_random": 20.1}
    text = render({"meta": meta, "rows": [{**row, "reached": [12, None, 20]}]})
    assert "| k, alpha | 0.25 | 0.6000 | 0.8000 | 12, >60, 20 | 20 | 20.1 | 9 |" in text
    text = render({"meta": meta, "rows": [{**row, "reached": [12, None, None]}]})
    assert text.endswith("| 12, >60, >60 | >60 | 20.1 | 9 |")


def test_a_folder_must_be_given() -> None:
    with pytest.raises(SystemExit):
        parse([])
    assert parse(["--folder", "data", "--budget", "0.5"]).budget == [0.5]


@pytest.mark.parametrize("limit", [0, STRETCH - 1, STRETCH + 1])
def test_a_limit_is_a_multiple_of_a_stretch(limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--folder", "data", "--limit", str(limit)])
    assert f"must be a multiple of {STRETCH}" in capsys.readouterr().err
