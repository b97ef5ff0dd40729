import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import curves
from vtr_vllm.schedules import RankRule, make_plan


def plan_of(keep, rules, n_vision):
    return make_plan(keep, [RankRule.parse(rule) for rule in rules], n_vision)


def test_a_plan_of_one_cut():
    plan = plan_of([1, 1, 0.5, 0.5], ["last"], 9)
    assert plan.counts == (9, 9, 5, 5)
    assert plan.cuts == (2,)
    assert plan.rules == (RankRule.parse("last"),)
    assert [plan.dropped(layer) for layer in range(4)] == [0, 0, 4, 4]
    assert plan.reduces
    assert plan.mean_keep == pytest.approx(28 / 36)


@pytest.mark.parametrize("n_vision", [0, 1])
def test_a_prompt_too_small_to_reduce(n_vision):
    plan = plan_of([1, 1, 0.9, 0.6], ["last", "previous"], n_vision)
    assert not plan.reduces
    assert plan.cuts == plan.rules == ()
    assert plan.mean_keep == 1.0


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # of 4 tokens only the cut before layer 4 takes some
        (["saliency", "last", "previous"], "last"),
        (["saliency", "previous", "previous"], "saliency"),
        (["saliency", "last", "previous+nearest"], "last+nearest"),
        (["saliency", "last+scored", "previous"], "last"),
        (["saliency", "last", "instruction"], "instruction"),
    ],
)
def test_previous_takes_over_the_rule_of_a_cut_that_vanished(rules, expected):
    plan = plan_of([0.99, 0.99, 0.98, 0.98, 0.5], rules, 4)
    assert plan.cuts == (4,)
    assert [str(rule) for rule in plan.rules] == [expected]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # of 4 tokens the middle cut takes none
        (["last", "previous", "previous"], ["last", "previous"]),
        (["last", "instruction", "previous"], ["last", "instruction"]),
        (["last", "instruction", "random"], ["last", "random"]),
    ],
)
def test_previous_after_a_vanished_cut_in_the_middle(rules, expected):
    plan = plan_of([1, 1, 0.75, 0.7, 0.25], rules, 4)
    assert plan.cuts == (2, 4)
    assert [str(rule) for rule in plan.rules] == expected


def test_a_count_that_was_found_bounds_what_follows():
    plan = plan_of([1, 1, 0.8, 0.5, 0.2], ["last@0.9", "instruction", "previous"], 10)
    assert plan.is_adaptive
    assert plan.with_count(2, 8) == plan, "as many as may stay"
    found = plan.with_count(2, 4)
    assert found.counts == (10, 10, 4, 4, 2)
    assert found.cuts == (2, 4)
    assert [str(rule) for rule in found.rules] == ["last@0.9", "instruction"]
    assert plan.with_count(2, 1).cuts == (2,), "nothing is left to drop"
    again = plan_of([1, 1, 0.8, 0.5, 0.3], ["last@0.9", "instruction", "previous"], 100)
    vanished = again.with_count(2, 50)
    assert [str(rule) for rule in vanished.rules] == ["last@0.9", "instruction"]
    assert vanished.counts == (100, 100, 50, 50, 30), "what did not happen is not repeated"
    assert plan.with_counts(found.counts) == found
    assert not plan_of([1, 1, 0.5, 0.5], ["last"], 9).is_adaptive


def test_an_adaptive_cut_happens_whatever_stays_before_it():
    plan = plan_of([1, 1, 0.8, 0.5, 0.5], ["last@0.9", "instruction@0.9"], 10)
    found = plan.with_count(2, 4)
    assert found.counts == (10, 10, 4, 4, 4), "fewer than the second may keep"
    assert found.cuts == (2, 3)
    assert found.with_count(3, 2).counts == (10, 10, 4, 2, 2)
    assert plan.with_count(2, 1).cuts == (2,), "one token is left, which stays"
    unbounded = plan_of([1, 1, 0.999, 0.998], ["last@0.9", "last@0.9"], 10)
    assert unbounded.counts == (10, 10, 10, 10)
    assert unbounded.cuts == (2, 3)
    assert unbounded.reduces
    assert unbounded.with_counts([10, 10, 10, 10]) == unbounded
    assert not plan_of([1, 1, 0.999, 0.998], ["last@0.9", "last@0.9"], 1).reduces


def test_the_order_of_modules_is_not_taken_to_another_layer():
    """They were trained for their own, so what repeats a cut that vanished repeats the one before it."""
    plan = plan_of([1, 1, 0.9, 0.5, 0.3], ["atp", "atp-fixed", "previous"], 64)
    found = plan.with_count(2, 25)
    assert found.cuts == (2, 4)
    assert [str(rule) for rule in found.rules] == ["atp", "previous"]
    attention = plan_of([1, 1, 0.9, 0.5, 0.3], ["atp", "last", "previous"], 64).with_count(2, 25)
    assert [str(rule) for rule in attention.rules] == ["atp", "last"]


def test_a_settled_plan_is_that_of_a_schedule_which_states_what_was_found():
    plan = plan_of([1, 1, 0.8, 0.5, 0.2], ["last@0.9", "instruction@0.9", "last"], 10)
    assert plan.settled([10, 10, 4, 4, 2]) == plan_of([1, 1, 0.4, 0.4, 0.2], ["last", "last"], 10)
    assert not plan.settled([10] * 5).reduces


@given(curves(12, adaptive=True), st.integers(1, 700), st.data())
@settings(deadline=None)
def test_a_plan_with_a_count_is_the_plan_of_its_counts(curve, n_vision, data):
    """As if the host had known it: rates that come to these counts, by the same rules."""
    keep, rules = curve
    plan = make_plan(keep, rules, n_vision)
    if not plan.reduces:
        return
    layer = data.draw(st.sampled_from(plan.cuts))
    found = plan.with_count(layer, data.draw(st.integers(0, plan.counts[layer])))
    rates = [count / n_vision for count in found.counts]
    settled = found.settled(found.counts)
    assert make_plan(rates, settled.rules, n_vision) == settled
    assert not settled.is_adaptive
    assert settled.counts == found.counts
    if not plan.is_adaptive:
        assert settled == found
    assert found.with_counts(found.counts) == found


@given(curves(12, adaptive=True), st.integers(0, 700))
@settings(deadline=None)
def test_every_cut_of_a_plan_can_be_run(curve, n_vision):
    keep, rules = curve
    plan = make_plan(keep, rules, n_vision)
    for layer, rule in zip(plan.cuts, plan.rules, strict=True):
        before = plan.counts[layer - 1] if layer else n_vision
        assert plan.counts[layer] < before or (rule.is_adaptive and before > 1)
        assert layer >= 2 or not rule.needs_attention
    assert not plan.rules or plan.rules[0].name != "previous"
    assert plan.reduces or min(plan.counts, default=n_vision) == n_vision
    assert plan.reduces == (min(plan.counts) < n_vision or plan.is_adaptive)
    assert plan == make_plan(keep, rules, n_vision)


def test_rules_of_another_schedule_are_refused():
    with pytest.raises(ValueError, match="zip"):
        plan_of([1, 1, 0.5, 0.5], ["last", "previous"], 9)
