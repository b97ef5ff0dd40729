import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.schedules.strategies import LLAVA_7B, budgets, geometries
from vtr_vllm.errors import InvalidBudget, ScheduleError
from vtr_vllm.schedules import (
    FORMS,
    ModelGeometry,
    RankRule,
    Schedule,
    explicit,
    fastv,
    form_by_name,
    full,
    pyramid_drop,
    vtw,
)
from vtr_vllm.schedules.forms.registry import form

TWO_FULL_LAYERS = ["fastv", "feather", "illava", "pdrop", "priortr", "random", "sparsevlm"]
BEFORE_LAYER_0 = {
    "uniform": "saliency",
    "divprune": "diverse",
    "gots": "orthogonal",
    "vtc-cls": "cls",
    "matryoshka": "prefix",
    "prumerge": "cls+neighbours",
    "prumerge-plus": "cls-spread+nearest",
    "visionzip": "cls+nearest",
    "fopru": "cls",
    "fopru-row": "cls-rows",
}


@given(st.sampled_from(["p-sigmoid", *BEFORE_LAYER_0, *TWO_FULL_LAYERS]), geometries, budgets)
@settings(deadline=None, max_examples=150)
def test_every_form_meets_every_budget_in_its_reach(form, geometry, budget):
    if form in TWO_FULL_LAYERS:
        least = 2 / geometry.layers
        budget = least + (1 - least) * budget
    schedule = FORMS[form](geometry, budget)
    assert abs(schedule.mean_keep - budget) < 1e-9
    assert schedule.name == f"{form}-{budget!r}"
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 8, 48])
def test_the_whole_budget_is_no_reduction(form, layers):
    assert set(FORMS[form](ModelGeometry(layers, 8, 16, 1, 1, 8), 1.0).keep) == {1.0}


@pytest.mark.parametrize("form", TWO_FULL_LAYERS)
@pytest.mark.parametrize("layers", [3, 4, 5, 8, 12, 24, 32, 48])
def test_the_least_budget_leaves_two_layers(form, layers):
    geometry = ModelGeometry(layers, 8, 16, 1, 1, 8)
    schedule = FORMS[form](geometry, 2 / layers)
    assert schedule.keep == (1.0, 1.0) + (0.0,) * (layers - 2)
    with pytest.raises(InvalidBudget, match=rf"it reaches {2 / layers} \.\. 1\.0"):
        FORMS[form](geometry, 2 / layers - 1e-6)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("budget", [0, 1.5, True, "0.5", float("nan")])
def test_no_budget_at_all(form, budget):
    with pytest.raises(InvalidBudget, match=r"not a number in \(0, 1\]"):
        FORMS[form](LLAVA_7B, budget)


def test_full_is_full():
    assert full(LLAVA_7B).cuts == ()
    with pytest.raises(InvalidBudget, match="exactly 1"):
        full(LLAVA_7B, 0.9)


@pytest.mark.parametrize(("form", "rule"), BEFORE_LAYER_0.items())
def test_one_cut_before_layer_0_without_the_question(form, rule):
    schedule = FORMS[form](LLAVA_7B, 0.3)
    assert schedule.cuts == (0,)
    assert [str(rule) for rule in schedule.rules] == [rule]
    assert set(schedule.keep) == {0.3}
    assert schedule.is_local


@pytest.mark.parametrize(("form", "rule"), [("random", "random"), ("priortr", "last-prior")])
def test_fastv_and_others_differ_in_the_order_only(form, rule):
    first, second = fastv(LLAVA_7B, 0.5), FORMS[form](LLAVA_7B, 0.5)
    assert first.keep == second.keep
    assert first.cuts == second.cuts == (2,)
    assert (str(first.rules[0]), str(second.rules[0])) == ("last", rule)


@pytest.mark.parametrize(
    ("budget", "cuts", "rate"),
    [
        (0.46875, (8, 16, 24), 0.5),  # the method's own setting
        (0.3320313, (8, 16, 24), 0.25),  # just above the least rate
        (0.2, (4, 9, 14), 0.297),  # cuts moved towards the input
        (0.07, (2, 3, 4), 0.141),  # cuts as early as they may be: the rate gives way
    ],
)
def test_pyramid_moves_its_cuts_before_it_cuts_harder(budget, cuts, rate):
    schedule = pyramid_drop(LLAVA_7B, budget)
    assert schedule.cuts == cuts
    assert schedule.keep[cuts[0]] == pytest.approx(rate, abs=1e-3)
    assert schedule.keep[-1] == pytest.approx(schedule.keep[cuts[0]] ** 3)


@pytest.mark.parametrize("layers", [12, 32])
def test_vtw_reaches_every_multiple(layers):
    geometry = ModelGeometry(layers, 8, 16, 1, 1, 8)
    for layer in range(1, layers):
        schedule = vtw(geometry, layer / layers)
        assert schedule.keep == (1.0,) * layer + (0.0,) * (layers - layer)
        assert form_by_name(geometry, schedule.name) == schedule


@pytest.mark.parametrize(
    ("budget", "nearest"), [(0.51, r"\[0.5, 0.5312\]"), (0.01, r"\[0.0312\]"), (0.99, "1.0")]
)
def test_vtw_names_the_nearest(budget, nearest):
    with pytest.raises(InvalidBudget, match=nearest):
        vtw(LLAVA_7B, budget)


def test_explicit_takes_any_valid_curve():
    geometry = ModelGeometry(4, 8, 16, 1, 1, 8)
    schedule = explicit(
        geometry, [1, 1, 0.5, 0], [RankRule.parse("last"), RankRule.parse("previous")]
    )
    assert schedule.budget is None
    assert schedule.mean_keep == 0.625
    with pytest.raises(ScheduleError, match="never rise"):
        explicit(geometry, [0.5, 1, 1, 1], [RankRule.parse("cls")])


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("full", "full"),
        ("fastv-0.5", "fastv-0.5"),
        ("p-sigmoid-0.1250", "p-sigmoid-0.125"),
        ("pdrop-1", "pdrop-1.0"),
        ("vtw-0.0312", "vtw-0.0312"),
    ],
)
def test_names_of_forms(name, canonical):
    assert form_by_name(LLAVA_7B, name).name == canonical


@pytest.mark.parametrize(
    "name",
    [
        *["", "fastv", "full-1.0", "fastv-.5", "fastv-0.12345", "fastv-5e-1", "fastv--0.5"],
        *["Fastv-0.5", "fastv-0.5 ", "fastv-0.5\n", "fastv-\u0660.5", "explicit-0.5", "fastv_0.5"],
    ],
)
def test_other_names_are_no_forms(name):
    assert form_by_name(LLAVA_7B, name) is None


@pytest.mark.parametrize("name", ["fastv-0.01", "fastv-0.0", "uniform-1.5", "vtw-0.51"])
def test_a_form_beyond_its_reach(name):
    with pytest.raises(InvalidBudget):
        form_by_name(LLAVA_7B, name)


def test_a_second_form_of_a_name_is_refused():
    with pytest.raises(TypeError, match="two forms are named fastv"):
        form("fastv")(fastv)
