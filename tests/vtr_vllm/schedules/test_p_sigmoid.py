import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import LLAVA_7B, budgets, geometries
from vtr_vllm.errors import InvalidBudget, ScheduleError
from vtr_vllm.schedules import ModelGeometry, p_sigmoid

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


@given(geometries, budgets)
@settings(deadline=None, max_examples=40)
def test_attention_ranks_all_but_a_first_cut(geometry, budget):
    schedule = p_sigmoid(geometry, budget)
    lead = 2 / geometry.layers
    assert (schedule.keep[0] < 1) == (lead > 0.75 * budget)
    assert schedule.keep[0] == schedule.keep[1]
    rules = dict(zip(schedule.cuts, map(str, schedule.rules), strict=True))
    assert rules.pop(0, "saliency") == "saliency"
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
    ],
)
def test_parameters_out_of_range_are_refused(parameters, reason):
    with pytest.raises(ScheduleError, match=reason):
        p_sigmoid(LLAVA_7B, 0.5, **parameters)


def test_budget_out_of_range_is_refused():
    with pytest.raises(InvalidBudget):
        p_sigmoid(LLAVA_7B, 0.0)
