from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import LLAVA_7B, curves, geometries
from vtr_vllm.errors import GeometryMismatch, InvalidBudget, ScheduleError
from vtr_vllm.schedules import ModelGeometry, Schedule, fastv, full, interpolate
from vtr_vllm.schedules.keep_rates import cut_layers, mean

GEOMETRY = ModelGeometry(8, 128, 320, 2, 2, 64)


def of(name, keep, rules):
    return Schedule(name, GEOMETRY, keep, rules, method="drawn", budget=mean(keep))


LOWER = of("low", (1, 1, 0.5, 0.5, 0.25, 0.25, 0, 0), ("last", "previous", "random"))
UPPER = of("high", (1, 1, 1, 0.75, 0.75, 0.75, 0.5, 0.5), ("instruction", "previous"))


@st.composite
def neighbours(draw):
    """Two schedules of one geometry with different budgets, and a budget of theirs or between."""
    geometry = draw(geometries)
    drawn = (draw(curves(geometry.layers)) for _ in range(2))
    ends = sorted(drawn, key=lambda curve: mean(curve[0]))
    lower, upper = (
        Schedule(name, geometry, *curve, method="drawn", budget=mean(curve[0]) or None)
        for name, curve in zip(("low", "high"), ends, strict=True)
    )
    assume(lower.budget is not None and lower.budget < upper.budget)
    return lower, upper, draw(st.floats(lower.budget, upper.budget))


@given(neighbours())
@settings(deadline=None, max_examples=200)
def test_the_budget_is_met_and_rates_lie_between(drawn):
    lower, upper, budget = drawn
    found = interpolate(lower, upper, budget)  # its own checks hold: never rising, valid rules
    assert found.budget == budget
    assert found.mean_keep == pytest.approx(budget, rel=0, abs=1e-12)
    for low, rate, high in zip(lower.keep, found.keep, upper.keep, strict=True):
        assert min(low, high) - 1e-12 <= rate <= max(low, high) + 1e-12


@given(neighbours())
@settings(deadline=None, max_examples=200)
def test_cuts_and_their_scores_are_the_neighbours(drawn):
    lower, upper, budget = drawn
    found = interpolate(lower, upper, budget)
    assert set(found.cuts) <= {*lower.cuts, *upper.cuts}
    own = {str(rule) for rule in (*lower.rules, *upper.rules)} | {"previous"}
    assert {str(rule) for rule in found.rules} <= own


@given(neighbours())
@settings(deadline=None)
def test_at_its_own_budget_a_neighbour_comes_back(drawn):
    lower, upper, _ = drawn
    for own in (lower, upper):
        found = interpolate(lower, upper, own.budget)
        assert (found.keep, found.rules, found.budget) == (own.keep, own.rules, own.budget)


@given(neighbours(), st.data())
@settings(deadline=None)
def test_more_budget_keeps_no_less_in_any_layer_between_nested_neighbours(drawn, data):
    lower, other, _ = drawn
    most = [max(pair) for pair in zip(lower.keep, other.keep, strict=True)]
    rules = ("random",) * len(cut_layers(most, 1.0))
    upper = Schedule("most", lower.geometry, most, rules, method="drawn", budget=mean(most))
    assume(lower.budget < upper.budget)
    inside = st.floats(lower.budget, upper.budget)
    less, more = sorted(data.draw(st.tuples(inside, inside)))
    pairs = zip(
        interpolate(lower, upper, less).keep, interpolate(lower, upper, more).keep, strict=True
    )
    assert all(rate <= higher + 1e-12 for rate, higher in pairs)


def test_what_the_result_says_of_itself():
    found = interpolate(LOWER, UPPER, LOWER.budget + 0.25 * (UPPER.budget - LOWER.budget))
    assert found.name == f"interpolated-{found.budget!r}"
    assert found.method == "interpolated"
    assert found.parameters == {"lower": "low", "upper": "high", "t": 0.25}


def test_the_larger_floor_holds():
    middle = (LOWER.budget + UPPER.budget) / 2
    for low, high in ((0.0, 0.0), (0.5, 0.0), (0.25, 1.0)):
        neighbours_ = (replace(LOWER, per_image_floor=low), replace(UPPER, per_image_floor=high))
        assert interpolate(*neighbours_, middle).per_image_floor == max(low, high)


@pytest.mark.parametrize(
    ("t", "rules"),
    [
        # layers 2, 3, 4, 6. The lower one cuts at 2, 4 and 6, the upper one at 3 and 6
        (0.25, ["last", "instruction", "last", "random"]),
        (0.5, ["last", "instruction", "last", "instruction"]),
        (0.75, ["last", "instruction", "last", "instruction"]),
    ],
)
def test_a_cut_takes_the_order_of_who_cuts_there_or_is_nearer(t, rules):
    found = interpolate(LOWER, UPPER, LOWER.budget + t * (UPPER.budget - LOWER.budget))
    assert found.cuts == (2, 3, 4, 6)
    assert [str(rule) for rule in found.rules] == rules


def test_previous_stays_while_the_order_does():
    lower = of("low", (1, 1, 0.5, 0.5, 0.25, 0.25, 0.1, 0.1), ("last", "previous", "previous"))
    found = interpolate(lower, full(GEOMETRY), 0.75)
    assert (found.cuts, found.rules) == (lower.cuts, lower.rules)


def test_previous_of_an_order_that_was_interrupted_ranks_again_once():
    lower = of("low", (1, 1, 0.5, 0.5, 0.25, 0.2, 0.1, 0.1), ("last",) + ("previous",) * 3)
    upper = of("high", (1, 1, 1, 0.9, 0.9, 0.9, 0.9, 0.9), ("cls",))
    found = interpolate(lower, upper, (lower.budget + upper.budget) / 2)
    assert found.cuts == (2, 3, 4, 5, 6)
    assert [str(rule) for rule in found.rules] == ["last", "cls", "last", "previous", "previous"]


def test_a_full_layer_stays_full_to_the_last_bit():
    lower, upper = fastv(LLAVA_7B, 0.3), fastv(LLAVA_7B, 0.7)
    for step in range(301, 700):
        found = interpolate(lower, upper, step / 1000)
        assert found.keep[:2] == (1.0, 1.0)
        assert found.cuts == (2,)


@pytest.mark.parametrize(
    ("lower", "upper", "budget", "error", "reason"),
    [
        (UPPER, LOWER, 0.5, ScheduleError, "with rising budgets"),
        (LOWER, LOWER, 0.4375, ScheduleError, "with rising budgets"),
        (replace(LOWER, budget=None), UPPER, 0.5, ScheduleError, r"low \(budget None\)"),
        (LOWER, replace(UPPER, budget=None), 0.5, ScheduleError, r"high \(budget None\)"),
        (LOWER, UPPER, 0.2, InvalidBudget, r"0.2 is not between low"),
        (LOWER, UPPER, float("nan"), InvalidBudget, "nan is not between low"),
        (LOWER, full(LLAVA_7B), 0.5, GeometryMismatch, "32L-.*8L-"),
    ],
)
def test_what_cannot_be_interpolated(lower, upper, budget, error, reason):
    with pytest.raises(error, match=reason):
        interpolate(lower, upper, budget)


def test_each_cut_keeps_its_own_merge():
    rules = ("last+scored", "previous", "previous+nearest", "previous")
    lower = of("low", (1, 1, 0.5, 0.5, 0.25, 0.2, 0.1, 0.1), rules)
    upper = of("high", (1, 1, 0.6, 0.6, 0.3, 0.25, 0.2, 0.2), rules)
    found = interpolate(lower, upper, (lower.budget + upper.budget) / 2)
    assert tuple(str(rule) for rule in found.rules) == rules
