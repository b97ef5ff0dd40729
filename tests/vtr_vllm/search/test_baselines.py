from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.schedules import ModelGeometry, p_sigmoid
from vtr_vllm.search.baselines import DOWNSAMPLE, SCHEDULES, baselines, of_schedule

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)
N_VISION = 144


def found_at(budget, n_vision=N_VISION, has_cls=True):
    found = baselines(GEOMETRY, budget, n_vision, has_cls)
    return {contender.method: contender for contender in found}


@given(st.floats(0.01, 1.0))
def test_all_that_can_be_met_has_the_same_mean_keep(budget):
    found = found_at(budget)
    assert tuple(found) == (*SCHEDULES, DOWNSAMPLE)
    for contender in found.values():
        assert contender.budget == budget
        assert (contender.candidate is None) == (contender.why_not is not None)
        if contender.candidate is None:
            assert contender.schedule is None
        else:
            # vtw takes a budget of four decimals as the nearest multiple of a layer's share
            assert contender.schedule.mean_keep == pytest.approx(budget, abs=6e-5)
    small = found[DOWNSAMPLE].candidate
    assert small == replace(found["uniform"].candidate, image_scale=budget)


def test_what_cannot_be_met_says_why():
    found = found_at(0.3)
    assert "vtw cannot meet a mean keep rate of 0.3" in found["vtw"].why_not
    assert "nearest [0.25, 0.3333]" in found["vtw"].why_not
    assert [method for method, each in found.items() if each.why_not] == ["vtw"]
    found = found_at(0.125)
    late = {"random", "fastv", "priortr", "pdrop", "feather", "sparsevlm", "illava", "vtw"}
    assert {m for m, each in found.items() if each.why_not} == late
    assert "it reaches 0.16666666666666666 .. 1.0" in found["fastv"].why_not


def test_names():
    found = found_at(0.125)
    assert found["uniform"].name == "uniform-0.125"
    assert found["fastv"].name == "fastv-0.125"
    assert found[DOWNSAMPLE].name == "downsample-0.125"


def test_a_budget_near_a_multiple_stands_under_the_budget_asked_for():
    vtw = found_at(0.3333)["vtw"]
    assert vtw.budget == 0.3333
    assert vtw.candidate.keep == (1.0,) * 4 + (0.0,) * 8


def test_candidates_are_whole_counts_where_prompts_are_alike():
    schedule = p_sigmoid(GEOMETRY, 0.3)
    exact = of_schedule("mine", schedule, N_VISION)
    assert (exact.method, exact.budget, exact.schedule) == ("mine", 0.3, schedule)
    assert [rate * N_VISION for rate in exact.candidate.keep] == list(schedule.counts(N_VISION))
    assert of_schedule("mine", schedule, None).candidate.keep == schedule.keep
    assert found_at(0.5, None)["fastv"].candidate.keep == found_at(0.5)["fastv"].schedule.keep


def test_a_schedule_without_a_budget_stands_at_what_it_spends():
    schedule = replace(p_sigmoid(GEOMETRY, 0.3), name="lossless", budget=None)
    assert of_schedule("g-search", schedule, N_VISION).budget == schedule.mean_keep


def test_a_model_without_a_cls_token_has_fewer_baselines():
    found = found_at(0.25, has_cls=False)
    assert {m for m, each in found.items() if "no CLS" in (each.why_not or "")} == {
        *("vtc-cls", "fopru-row", "prumerge", "prumerge-plus", "visionzip")
    }
    assert all(each.candidate for each in found_at(0.25).values())
