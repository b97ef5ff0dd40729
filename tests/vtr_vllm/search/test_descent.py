import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, study
from vtr_vllm.schedules import RankRule, Schedule, full, p_sigmoid, uniform
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.descent import Descent, descend, level, neighbours

LAYERS, N_VISION = 8, 24
STARTS = (2, 4, 6)
RULES = {0: RankRule.parse("saliency"), **{start: RankRule.parse("last") for start in STARTS}}
RUNGS = ((100, 4), (100, 2))

sizes_of = st.lists(st.integers(1, 5), min_size=2, max_size=6)


@st.composite
def staged(draw, rising=False):
    """Rates with their stage sizes; never rising unless asked for."""
    sizes = draw(sizes_of)
    rate = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)
    rates = draw(st.lists(rate, min_size=len(sizes), max_size=len(sizes)))
    return tuple(rates if rising else sorted(rates, reverse=True)), sizes


def spent(rates, sizes):
    return math.fsum(rate * size for rate, size in zip(rates, sizes, strict=True))


@given(staged(rising=True))
def test_level_is_isotonic_regression(given_rates):
    rates, sizes = given_rates
    found = level(rates, sizes)
    assert all(a >= b for a, b in pairwise(found))
    assert spent(found, sizes) == pytest.approx(spent(rates, sizes), abs=1e-9)
    fitted = IsotonicRegression(increasing=False).fit_transform(
        range(len(rates)), rates, sample_weight=sizes
    )
    assert found == pytest.approx(list(fitted), abs=1e-9)


@given(staged())
def test_level_leaves_what_never_rises(given_rates):
    rates, sizes = given_rates
    assert level(rates, sizes) == pytest.approx(list(rates))


@given(staged(), st.floats(1e-3, 3), st.booleans())
def test_neighbours_are_valid_and_of_the_same_budget(given_rates, amount, fixed_first):
    rates, sizes = given_rates
    found = neighbours(rates, sizes, amount, fixed_first)
    assert len(set(found)) == len(found)
    assert rates not in found
    for neighbour in found:
        assert all(a >= b for a, b in pairwise(neighbour))
        assert all(0 <= rate <= 1 for rate in neighbour)
        assert spent(neighbour, sizes) == pytest.approx(spent(rates, sizes), abs=1e-9)
        if fixed_first:
            assert neighbour[0] == rates[0]


class Merging(SimulatedEvaluator):
    """Where what a cut drops is merged, more of use is kept; but not of ``worth`` before layer 0."""

    worth = 0.2

    def quality(self, rule, layer):
        return super().quality(rule, layer) + self.worth * (rule.merge == "nearest" and layer > 0)


@pytest.mark.parametrize(("worth", "merged"), [(0.2, {"nearest"}), (0.0, set())])
def test_a_merge_is_taken_where_it_is_worth_its_time(tmp_path, worth, merged):
    model = Merging(LAYERS, (N_VISION,))
    model.worth = worth
    searched = study(model, items(tmp_path, 200))
    start = p_sigmoid(searched.geometry, 0.25, 1.0, 3.0, (2, 4, 6))
    everywhere = RULES | {5: RankRule.parse("last")}  # a rule where no stage begins
    how = Descent(STARTS, everywhere, merges=("scored", "nearest"), portions=(), rungs=RUNGS)
    found = descend(searched, "descent", how, start)
    assert {rule.merge for rule in found.rules if rule.merge} == merged
    assert found.mean_keep == pytest.approx(0.25)


def merged(searched, start, **how):
    """What a descent that may merge and nothing else makes of ``start``."""
    how = Descent(STARTS, RULES, merges=("nearest",), portions=(), rungs=RUNGS, **how)
    return descend(searched, "descent", how, start)


def test_a_merge_that_is_worth_less_than_its_time_is_refused(tmp_path):
    model = Merging(LAYERS, (N_VISION,))
    model.worth = 0.05
    searched = study(model, items(tmp_path, 300))
    start = p_sigmoid(searched.geometry, 0.25, 1.0, 3.0, (2, 4, 6))
    cheap = merged(searched, start, worth_merging=0.0, sweeps=1)
    assert {rule.merge for rule in cheap.rules if rule.merge} == {"nearest"}
    assert 0 < value(searched, cheap) - value(searched, start) < 0.005
    assert merged(searched, start, sweeps=1) is start


def test_nothing_is_tried_on_a_schedule_that_loses_little_enough(searched):
    start = uniform(searched.geometry, 0.4)
    lost = searched.unreduced().value - value(searched, start)
    assert lost > 0
    how = Descent(STARTS, RULES, rungs=RUNGS, enough=lost)
    assert descend(searched, "enough", how, start) is start
    assert searched.costs["enough"].evaluations == 1
    assert descend(searched, "less", replace(how, enough=0.9 * lost), start) is not start
    assert descend(searched, "none", replace(how, enough=0.0), start) is not start


def test_neighbours_of_a_curve_by_hand():
    """Two layers, then two of one: what one gives another takes, and 0.3 less would rise."""
    found = neighbours((1.0, 0.6, 0.2), (2, 1, 1), 0.2, fixed_first=True)
    assert found == [pytest.approx((1.0, 0.4, 0.4)), pytest.approx((1.0, 0.8, 0.0))]
    moved = neighbours((1.0, 0.6, 0.2), (2, 1, 1), 0.2, fixed_first=False)
    # nothing can be given to the first stage, which is full
    assert [tuple(round(rate, 3) for rate in rates) for rates in moved] == [
        (0.9, 0.8, 0.2),
        (0.9, 0.6, 0.4),
        (1.0, 0.4, 0.4),
        (1.0, 0.8, 0.0),
    ]


def test_a_move_that_would_rise_levels_the_stages():
    found = neighbours((0.6, 0.5, 0.1), (1, 1, 1), 0.4, fixed_first=False)
    rounded = [tuple(round(rate, 3) for rate in rates) for rates in found]
    assert (0.4, 0.4, 0.4) in rounded  # the first gives 0.4 to the last
    assert all(first >= second >= third for first, second, third in rounded)


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.0, 0.0)])
def test_nothing_to_move(rates):
    assert neighbours(rates, (1, 3), 0.1, fixed_first=False) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return items(tmp_path_factory.mktemp("descent"), 100)


@pytest.fixture
def searched(data):
    return study(SimulatedEvaluator(LAYERS, (N_VISION,)), data)


def value(searched, schedule):
    return searched.evaluate("check", [Candidate.of(schedule, N_VISION)])[0].value


@given(
    budget=st.floats(0.1, 0.9),
    k=st.floats(0, 4),
    alpha=st.floats(0, LAYERS),
    share=st.floats(0, 1),
)
@hypothesis_settings(deadline=None, max_examples=8)
def test_never_worse_and_of_the_same_budget(searched_once, budget, k, alpha, share):
    highest = min(1.0, budget * LAYERS / 2)
    first = budget + (highest - budget) * share
    start = p_sigmoid(searched_once.geometry, budget, k, alpha, STARTS, first, RULES)
    found = descend(searched_once, "descent", Descent(STARTS, RULES, rungs=RUNGS), start)
    assert value(searched_once, found) >= value(searched_once, start)
    assert found.mean_keep == pytest.approx(start.mean_keep, abs=1e-9)
    assert found.budget == start.budget
    if value(searched_once, found) == value(searched_once, start):
        assert found is start


@pytest.fixture(scope="module")
def searched_once(data):
    return study(SimulatedEvaluator(LAYERS, (N_VISION,)), data)


def test_a_flat_curve_gets_better(searched):
    start = uniform(searched.geometry, 0.4)
    found = descend(searched, "descent", Descent(STARTS, RULES, rungs=RUNGS), start)
    assert value(searched, found) > value(searched, start)
    assert found.keep[0] > 0.4 > found.keep[-1]
    assert (found.name, found.method) == ("descent-0.4", "descent")
    assert found.parameters["from"] == start.name
    assert found.parameters["moves"] >= 1
    assert [str(rule) for rule in found.rules] == [str(RULES[cut]) for cut in found.cuts]


def test_without_a_rule_before_layer_0_the_first_stage_stays_full(searched):
    rules = {start: RankRule.parse("last") for start in STARTS}
    keep = (1.0,) * 2 + (0.4,) * 6
    start = Schedule(
        "start", searched.geometry, keep, (RankRule.parse("last"),), "hand", budget=0.55
    )
    found = descend(searched, "descent", Descent(STARTS, rules, rungs=RUNGS), start)
    assert found.keep[:2] == (1.0, 1.0)
    assert found.keep != start.keep
    assert found.mean_keep == pytest.approx(0.55, abs=1e-9)


def test_nothing_better_nothing_changed(searched):
    start = full(searched.geometry)
    assert descend(searched, "descent", Descent(STARTS, RULES), start) is start


def test_the_same_again_and_nothing_runs(searched):
    start = uniform(searched.geometry, 0.4)
    how = Descent(STARTS, RULES, rungs=RUNGS)
    first = descend(searched, "descent", how, start)
    requests = searched.costs["descent"].requests
    assert descend(searched, "descent", how, start) == first
    assert searched.costs["descent"].requests == requests


def test_another_rule_takes_the_place_of_a_poor_one(data):
    """The simulated model ranks badly by attention before layer 4, where only one cut may be."""
    searched = study(SimulatedEvaluator(LAYERS, (N_VISION,), poor=(4,), has_cls=True), data)
    last, cls = RankRule.parse("last"), RankRule.parse("cls")
    keep = (1.0,) * 4 + (0.3,) * 4
    start = Schedule("start", searched.geometry, keep, (last,), "hand", budget=0.65)
    how = Descent((4,), {4: last}, {4: (last, cls)}, rungs=RUNGS)
    found = descend(searched, "descent", how, start)
    assert found.rules == (cls,)
    assert found.keep == pytest.approx(start.keep)
    assert value(searched, found) > value(searched, start)
    alone = descend(searched, "descent", replace(how, rivals={4: (last,)}), start)
    assert alone is start
