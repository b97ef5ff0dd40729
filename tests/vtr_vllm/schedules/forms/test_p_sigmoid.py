import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import LLAVA_7B, budgets, geometries
from vtr_vllm.errors import InvalidBudget, ScheduleError
from vtr_vllm.schedules import ModelGeometry, RankRule, p_sigmoid

N_VISION = 576


@given(geometries, budgets)
@settings(deadline=None, max_examples=80)
def test_every_budget_is_met(geometry, budget):
    schedule = p_sigmoid(geometry, budget)
    assert abs(schedule.mean_keep - budget) < 1e-12
    assert schedule.budget == budget
    spent = sum(schedule.counts(N_VISION))
    assert abs(spent - budget * N_VISION * geometry.layers) <= geometry.layers


@given(geometries, budgets, st.floats(0, 100), st.floats(-1, 2), st.data())
@settings(deadline=None, max_examples=80)
def test_every_parameter_meets_the_budget(geometry, budget, k, midpoint, data):
    stages = data.draw(st.integers(1, geometry.layers - 2))
    schedule = p_sigmoid(geometry, budget, k=k, alpha=midpoint * geometry.layers, stages=stages)
    assert abs(schedule.mean_keep - budget) < 1e-9
    assert len(set(schedule.keep[2:])) <= stages


@st.composite
def staged(draw):
    """A geometry, a budget, the first layers of stages and a rate before them that fits."""
    geometry, budget = draw(geometries), draw(budgets)
    layers = st.integers(2, geometry.layers - 1)
    stages = sorted(draw(st.sets(layers, min_size=1, max_size=6)))
    most = min(1.0, budget * geometry.layers / stages[0])
    first = draw(st.none() | st.floats(0, 1).map(lambda share: budget + (most - budget) * share))
    return geometry, budget, stages, first if first is None else min(first, most)


@given(staged(), st.floats(0, 100), st.floats(-1, 2))
@settings(deadline=None, max_examples=150)
def test_given_stages_and_first_rate_meet_the_budget(drawn, k, midpoint):
    geometry, budget, stages, first = drawn
    alpha = midpoint * geometry.layers
    schedule = p_sigmoid(geometry, budget, k, alpha, stages, first)
    assert abs(schedule.mean_keep - budget) < 1e-6
    assert all(0 <= rate <= 1 for rate in schedule.keep)
    assert all(deeper <= rate for rate, deeper in pairwise(schedule.keep))
    # one rate within each stage, and before the first
    bounds = [0, *stages, geometry.layers]
    assert all(len(set(schedule.keep[a:b])) == 1 for a, b in pairwise(bounds))
    if first is not None:
        assert schedule.keep[0] == first
    counts = schedule.counts(N_VISION)
    for count, rate in zip(counts, schedule.keep, strict=True):
        assert abs(count - rate * N_VISION) <= 0.5 + 1e-9
    assert abs(sum(counts) - budget * N_VISION * geometry.layers) <= geometry.layers
    again = schedule.parameters
    assert p_sigmoid(geometry, budget, **again) == schedule


def test_given_stages_are_those_of_the_number():
    assert p_sigmoid(LLAVA_7B, 0.3, stages=range(2, 32)) == p_sigmoid(LLAVA_7B, 0.3, stages=30)
    assert p_sigmoid(LLAVA_7B, 0.3, stages=[4, 9, 20]).cuts == (4, 9, 20)


def test_without_stages_there_is_one_rate():
    assert p_sigmoid(LLAVA_7B, 0.3, stages=[]).keep == (0.3,) * 32


def test_a_late_first_stage_has_a_blind_cut_before_it():
    """Sixteen full layers would be half of the work: more than .75 of the budget."""
    schedule = p_sigmoid(LLAVA_7B, 0.5, stages=[16])
    assert schedule.keep[0] == pytest.approx(0.75)
    assert schedule.keep[16] == pytest.approx(0.25)
    assert [str(rule) for rule in schedule.rules] == ["diverse", "last"]


def test_a_last_stage_of_few_layers_leaves_the_others_no_less_than_the_budget():
    assert p_sigmoid(LLAVA_7B, 1.0, stages=[30]).keep == (1.0,) * 32
    assert p_sigmoid(LLAVA_7B, 0.9, stages=[30]).keep == pytest.approx((0.9,) * 32)


def test_first_rate_caps_the_sigmoid():
    schedule = p_sigmoid(LLAVA_7B, 0.3, k=1.0, alpha=12, stages=[2, 8, 16], first_rate=0.4)
    assert max(schedule.keep) == schedule.keep[0] == schedule.keep[8 - 1] == 0.4
    assert p_sigmoid(LLAVA_7B, 0.3, first_rate=0.3).keep == pytest.approx((0.3,) * 32)


def test_rules_go_to_the_cuts_of_their_layers():
    rules = {
        0: RankRule.parse("cls"),
        8: RankRule.parse("instruction-norope"),
        9: RankRule.parse("random"),
    }
    given_stages = {"stages": [2, 8, 16], "k": 0.1, "alpha": 8}
    schedule = p_sigmoid(LLAVA_7B, 0.15, first_rate=0.5, rules=rules, **given_stages)
    assert dict(zip(schedule.cuts, map(str, schedule.rules), strict=True)) == {
        0: "cls",
        2: "last",
        8: "instruction-norope",
        16: "last",
    }
    schedule = p_sigmoid(LLAVA_7B, 0.15, first_rate=1.0, rules=rules, **given_stages)
    assert 0 not in schedule.cuts


@given(geometries, budgets)
@settings(deadline=None, max_examples=40)
def test_attention_ranks_all_but_a_first_cut(geometry, budget):
    schedule = p_sigmoid(geometry, budget)
    lead = 2 / geometry.layers
    assert (schedule.keep[0] < 1) == (lead > 0.75 * budget)
    assert schedule.keep[0] == schedule.keep[1]
    rules = dict(zip(schedule.cuts, map(str, schedule.rules), strict=True))
    assert rules.pop(0, "diverse") == "diverse"
    assert set(rules.values()) <= {"last"}


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("budget", [0.01, 0.5, 0.99, 1.0])
def test_few_layers(layers, budget):
    geometry = ModelGeometry(layers, 8, 16, 1, 1, 8)
    assert p_sigmoid(geometry, budget).mean_keep == pytest.approx(budget, abs=1e-12)


def test_shape_is_the_logistic():
    schedule = p_sigmoid(LLAVA_7B, 0.25, k=0.3, alpha=11, stages=30)
    logistic = [1 / (1 + math.exp(0.3 * (layer - 11))) for layer in range(32)]
    scale = schedule.keep[2] / logistic[2]
    assert schedule.keep[:2] == (1.0, 1.0)
    assert schedule.keep[2:] == pytest.approx([scale * value for value in logistic[2:]], rel=1e-9)


def test_default_has_the_shape_of_the_published_curve():
    # G-Search on LLaVA-1.5-7B, arXiv 2412.00556 figure 1c, digitised; layers 1.. of the figure
    found = {3: 0.65, 8: 0.50, 12: 0.488, 14: 0.238, 18: 0.183, 24: 0.071, 28: 0.042}
    schedule = p_sigmoid(LLAVA_7B, 0.34)
    assert all(abs(schedule.keep[layer] - rate) < 0.13 for layer, rate in found.items())


def test_stages_keep_the_cuts_few():
    schedule = p_sigmoid(LLAVA_7B, 0.25)
    assert len(schedule.parameters["stages"]) == 10
    assert schedule.cuts == tuple(range(2, 32, 3))
    assert schedule.name == "p-sigmoid-0.25"


def test_no_steepness_is_uniform_after_two_layers():
    assert len(set(p_sigmoid(LLAVA_7B, 0.5, k=0).keep[2:])) == 1


def test_the_whole_budget_cuts_nothing():
    assert p_sigmoid(LLAVA_7B, 1.0).cuts == ()


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"k": -0.1}, r"k is -0.1; give a number in 0\.\.100"),
        ({"k": math.nan}, "k is nan"),
        ({"k": True}, "k is True"),
        ({"k": 101}, "k is 101"),
        ({"alpha": math.inf}, r"alpha is inf; give a number in -32\.\.64"),
        ({"alpha": "12"}, "alpha is '12'"),
        ({"stages": 0}, r"stages is 0; for 32 layers give 1\.\.30"),
        ({"stages": 31}, "stages is 31"),
        ({"stages": 2.0}, "stages is 2.0"),
        ({"stages": [1, 4]}, r"stages begin at \[1, 4\]; for 32 layers give rising layer"),
        ({"stages": [4, 2]}, r"stages begin at \[4, 2\]"),
        ({"stages": [4, 4]}, r"stages begin at \[4, 4\]"),
        ({"stages": [4, 32]}, r"stages begin at \[4, 32\]"),
        ({"stages": [2.0, 4]}, r"stages begin at \[2.0, 4\]"),
        ({"stages": [True, 4]}, r"stages begin at \[True, 4\]"),
        ({"stages": "24"}, "stages "),
        ({"first_rate": 0.4}, r"first_rate is 0.4; give a number in 0.5\.\.1"),
        ({"first_rate": 1.1}, "first_rate is 1.1"),
        ({"first_rate": math.nan}, "first_rate is nan"),
        ({"stages": [20], "first_rate": 0.9}, r"first_rate is 0.9; give a number in 0.5\.\.0.8"),
        (
            {"stages": [2], "rules": {2: RankRule.parse("previous")}},
            "the first cut .before layer 2. is ranked by previous",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, reason):
    with pytest.raises(ScheduleError, match=reason):
        p_sigmoid(LLAVA_7B, 0.5, **parameters)


def test_budget_out_of_range_is_refused():
    with pytest.raises(InvalidBudget):
        p_sigmoid(LLAVA_7B, 0.0)
