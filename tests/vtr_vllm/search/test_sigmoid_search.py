import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import ModelGeometry, RankRule
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.sigmoid_search import (
    PARALLEL,
    Curves,
    Trial,
    best_trial,
    confirmed,
    fit_logistic,
    search_sigmoid,
)

N_VISION, LAYERS = 24, 8
GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)
PAPER = Curves(range(2, LAYERS), {}, blind=False)
RULES = {
    0: RankRule.parse("saliency"),
    2: RankRule.parse("instruction-norope"),
    5: RankRule.parse("last"),
}
BLIND = Curves((2, 5), RULES, blind=True)

budgets = st.floats(0.02, 1.0)
shares = st.floats(0, 1)


def at(dimensions, place):
    """The point at a share of each dimension's range."""
    return tuple(d.low + (d.high - d.low) * p for d, p in zip(dimensions, place, strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("sigmoid"), 100)


@pytest.fixture
def searched(data):
    return study(SimulatedEvaluator(LAYERS, (N_VISION,)), data)


@given(budgets, shares, shares)
def test_the_papers_family_meets_the_budget(budget, k, alpha):
    family = Curves(range(2, 12), {}, blind=False)
    point = at(family.dimensions(12), (k, alpha))
    schedule = family.schedule(GEOMETRY, budget, point)
    assert schedule.mean_keep == pytest.approx(budget, abs=1e-9)
    assert schedule.budget == budget
    assert {str(rule) for cut, rule in zip(schedule.cuts, schedule.rules, strict=True) if cut} <= {
        "last"
    }


@given(budgets, shares, shares, shares)
def test_a_blind_first_cut_meets_the_budget(budget, k, alpha, first):
    family = Curves(
        (2, 6, 9), {0: RankRule.parse("cls"), 6: RankRule.parse("instruction")}, blind=True
    )
    point = at(family.dimensions(12), (k, alpha, first))
    schedule = family.schedule(GEOMETRY, budget, point)
    assert schedule.mean_keep == pytest.approx(budget, abs=1e-9)
    used = dict(zip(schedule.cuts, map(str, schedule.rules), strict=True))
    expected = {0: "cls", 2: "last", 6: "instruction", 9: "last"}
    assert used.items() <= expected.items()


@given(st.floats(0.02, 0.99), shares)
def test_the_third_coordinate_runs_from_one_rate_to_the_most_that_fits(budget, share):
    family = Curves((2, 6), {}, blind=True)
    one, some, most = (
        family.schedule(GEOMETRY, budget, (0.5, 6.0, s)).keep for s in (0.0, share, 1.0)
    )
    assert one == pytest.approx((budget,) * 12)
    assert most[0] == pytest.approx(min(1.0, 0.98 * budget * 12 / 2))
    assert one[0] - 1e-12 <= some[0] <= most[0] + 1e-12


def test_what_is_searched():
    assert [d.name for d in PAPER.dimensions(LAYERS)] == ["k", "alpha"]
    k, alpha, first = BLIND.dimensions(LAYERS)
    assert (k.low, k.high, k.log) == (1 / 8, 60 / 8, True)
    assert (alpha.low, alpha.high) == (0.0, 8.0)
    assert (first.name, first.low, first.high) == ("first", 0.0, 1.0)


@given(st.integers(12, 40), st.floats(3, 16), st.floats(0.3, 0.7), st.floats(0.4, 1.0))
@hypothesis_settings(deadline=None)
def test_fit_finds_the_parameters_of_a_logistic(layers, steepness, middle, scale):
    k, alpha = steepness / layers, middle * layers
    keep = [scale / (1 + math.exp(k * (layer - alpha))) for layer in range(layers)]
    found_k, found_alpha = fit_logistic([1.0, 1.0, *keep[2:]], 2)  # the first two do not count
    assert found_k == pytest.approx(k, rel=1e-2)
    assert found_alpha == pytest.approx(alpha, rel=1e-2, abs=0.05)


@pytest.mark.parametrize("keep", [[1.0] * 8, [0.0] * 8, [1.0] * 5 + [0.0] * 3])
def test_fit_of_any_curve_is_in_the_box(keep):
    k, alpha = fit_logistic(keep, 2)
    assert 1 / 8 * 0.999 <= k <= 60 / 8 * 1.001
    assert 0 <= alpha <= 8


def test_trials_are_in_order_and_begin_with_the_starts(searched):
    starts = [(1.0, 4.0), (2.0, 3.0)]
    trials = search_sigmoid(searched, "sigmoid", PAPER, 0.4, starts, 10, None, seed=0)
    assert [trial.order for trial in trials] == list(range(10))
    assert [tuple(trial.parameters.values()) for trial in trials[:2]] == starts
    for trial in trials:
        assert trial.schedule.mean_keep == pytest.approx(0.4, abs=1e-9)
        assert trial.schedule == PAPER.schedule(
            searched.geometry, 0.4, tuple(trial.parameters.values())
        )
        (found,) = searched.evaluate("again", [Candidate.of(trial.schedule, N_VISION)])
        assert (trial.value, trial.accuracy) == (found.value, found.accuracy)
        assert trial.budget == 0.4


def test_a_start_without_the_third_coordinate_is_tried_at_several(searched):
    starts = [(1.0, 4.0), (2.0, 3.0, 0.5)]
    trials = search_sigmoid(searched, "sigmoid", BLIND, 0.4, starts, 5, None, seed=0)
    firsts = [tuple(trial.parameters.values()) for trial in trials]
    assert firsts[:4] == [(1.0, 4.0, first) for first in (0.0, 0.3, 0.6, 1.0)]
    assert firsts[4] == (2.0, 3.0, 0.5)
    assert trials[0].schedule.cuts == (0,)  # the first cut alone is one of the family
    assert [trial.schedule.rules[0] for trial in trials if 0 in trial.schedule.cuts]


def test_same_seed_same_trials_and_more_go_on_from_there(data):
    def search(seed, trials):
        simulated = study(SimulatedEvaluator(LAYERS, (N_VISION,)), data)
        return search_sigmoid(simulated, "sigmoid", PAPER, 0.3, [], trials, None, seed)

    first = search(1, 5 * PARALLEL)
    assert search(1, 5 * PARALLEL) == first
    assert search(1, 3 * PARALLEL) == first[: 3 * PARALLEL]
    assert search(2, 3 * PARALLEL) != first[: 3 * PARALLEL]


def test_the_search_gets_better_than_its_start(searched):
    starts = [(7.5, 0.0)]  # everything in the first layers
    trials = search_sigmoid(searched, "sigmoid", PAPER, 0.4, starts, 24, None, seed=0)
    assert best_trial(trials).value > trials[0].value


def test_of_equal_trials_the_earliest_is_best(searched):
    schedule = PAPER.schedule(searched.geometry, 0.5, (1.0, 4.0))
    one = Trial(0.5, 0, {}, 0.7, 0.7, schedule)
    trials = [one, *(replace(one, order=n, value=v) for n, v in [(1, 0.8), (2, 0.8), (3, 0.1)])]
    assert best_trial(trials).order == 1
    assert best_trial(trials[::-1]).order == 1


def test_the_best_of_many_on_a_few_items_is_confirmed_on_all(tmp_path):
    """The leading four are compared on every item; what led by luck does not stay."""
    whole = study(SimulatedEvaluator(LAYERS, (N_VISION,)), items(tmp_path, 300))
    trials = search_sigmoid(whole, "sigmoid", PAPER, 0.4, [], 16, 50, seed=0)
    chosen = confirmed(whole, "sigmoid", trials)
    leading = sorted(trials, key=lambda trial: (-trial.value, trial.order))
    different = list(
        dict.fromkeys(Candidate.of(trial.schedule, whole.same_n_vision) for trial in leading)
    )[:4]
    on_all = whole.evaluate("sigmoid", different)
    best = max(on_all, key=lambda found: found.value)
    assert Candidate.of(chosen.schedule, whole.same_n_vision) == best.candidate
    assert chosen in trials
    mirrored = [replace(trial, value=-trial.value) for trial in trials]
    assert confirmed(whole, "sigmoid", mirrored).schedule != chosen.schedule
