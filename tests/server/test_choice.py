"""From an ask to a schedule, and from admitted prompts to facts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from server.choice import choose, describe, facts
from server.protocol import Ask
from tests.server.bad_input import INLINE
from vtr_vllm.errors import InvalidBudget, ScheduleError, UnknownSchedule, VTRError
from vtr_vllm.schedules import (
    ModelGeometry,
    Plan,
    RankRule,
    Schedule,
    ScheduleBook,
    flops_fraction,
    make_plan,
)

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)
SEARCHED = Schedule(
    name="searched-half",
    geometry=GEOMETRY,
    keep=(1.0,) * 2 + (0.4,) * 10,
    rules=(RankRule("last"),),
    method="g-search",
    budget=0.5,
)
BOOK = ScheduleBook(GEOMETRY, [SEARCHED])


@dataclass(frozen=True)
class Prompt:
    """Stands for what the engine's admission hook reports."""

    plan: Plan | None
    n_vision: int
    n_text: int


@pytest.mark.parametrize(
    ("ask", "name", "source", "budget"),
    [
        (Ask(), "full", "full", 1.0),
        (Ask(budget=1.0), "full", "full", 1.0),
        (Ask(budget=0.5), "searched-half", "searched", 0.5),
        (Ask(budget=0.25), "p-sigmoid-0.25", "p-sigmoid default", 0.25),
        (Ask(budget=0.75), "interpolated-0.75", "interpolated", 0.75),
        (Ask(schedule="full"), "full", "full", 1.0),
        (Ask(schedule="searched-half"), "searched-half", "searched", 0.5),
        (Ask(schedule="fastv-0.5"), "fastv-0.5", "built-in form", 0.5),
        (Ask(keep=[1.0] * 6 + [0.5] * 6, rules=["last"]), "inline", "inline", 0.75),
        (Ask(keep=[1] * 12, rules=[]), "inline", "inline", 1.0),
        (Ask(keep=[0] * 12, rules=["random"]), "inline", "inline", 0.0),
    ],
)
def test_the_schedule_and_where_it_comes_from(
    ask: Ask, name: str, source: str, budget: float
) -> None:
    choice = choose(BOOK, ask)
    assert (choice.schedule.name, choice.source) == (name, source)
    assert choice.budget == pytest.approx(budget)


@pytest.mark.parametrize(
    "ask", [Ask(), Ask(budget=1.0), Ask(schedule="full"), Ask(keep=[1.0] * 12, rules=[])]
)
def test_full_budget_puts_nothing_on_the_wire(ask: Ask) -> None:
    assert choose(BOOK, ask).wire == {}


def test_a_reduced_choice_travels_as_flat_lists() -> None:
    wire = choose(BOOK, Ask(schedule="searched-half")).wire
    assert wire == {"vtr_keep": [1.0] * 2 + [0.4] * 10, "vtr_rules": ["last"]}


def test_an_inline_schedule_travels_as_it_came() -> None:
    keep, rules = [1.0] * 4 + [0.5] * 4 + [0.0] * 4, ["last-norope", "previous"]
    assert choose(BOOK, Ask(keep=keep, rules=rules)).wire == {"vtr_keep": keep, "vtr_rules": rules}


@pytest.mark.parametrize(
    ("keep", "rules", "reason"),
    [
        ([1.0] * 11, [], "keep has 11 rates, the model has 12 layers"),
        ([1.0] * 11 + [float("nan")], ["last"], r"keep\[11\] is nan"),
        ([0.5] * 6 + [1.0] * 6, ["random"], r"keep\[6\] is 1.0, above keep\[5\] = 0.5"),
        ([1.0] * 6 + [0.5] * 6, [], "0 rank rules for 1 cuts"),
        ([1.0] * 6 + [0.5] * 6, ["first"], "rank rule 'first' is unknown"),
    ],
)
def test_a_bad_inline_schedule_gets_the_schedules_own_reason(
    keep: list[float], rules: list[str], reason: str
) -> None:
    with pytest.raises(ScheduleError, match=reason):
        choose(BOOK, Ask(keep=keep, rules=rules))


@pytest.mark.parametrize("field", INLINE, ids=lambda value: f"{value!r:.40}")
def test_every_malformed_inline_schedule_is_refused(field: dict[str, list[object]]) -> None:
    with pytest.raises(ScheduleError) as caught:
        choose(BOOK, Ask(keep=field["keep"], rules=field["rules"]))
    assert len(str(caught.value)) < 400


def test_an_unknown_name_and_an_impossible_budget_are_refused() -> None:
    with pytest.raises(UnknownSchedule, match="searched-half"):
        choose(BOOK, Ask(schedule="nosuch"))
    with pytest.raises(InvalidBudget, match="fastv cannot meet"):
        choose(BOOK, Ask(schedule="fastv-0.01"))


def test_facts_of_a_reduced_prompt() -> None:
    choice = choose(BOOK, Ask(budget=0.5))
    plan = make_plan(choice.schedule.keep, choice.schedule.rules, 100)
    told = facts(choice, [Prompt(plan, 100, 20)], GEOMETRY)
    assert told.kept_per_layer == [100] * 2 + [40] * 10
    assert told.vision_tokens == 100
    assert told.mean_keep == pytest.approx(0.5)
    assert told.flops_fraction == flops_fraction(GEOMETRY, plan.counts, 100, 20)


def test_facts_of_an_unreduced_prompt() -> None:
    told = facts(choose(BOOK, Ask()), [Prompt(None, 100, 20)], GEOMETRY)
    assert told.kept_per_layer == [100] * 12
    assert (told.mean_keep, told.flops_fraction) == (1.0, 1.0)


def test_facts_of_text_alone() -> None:
    told = facts(choose(BOOK, Ask(budget=0.25)), [Prompt(None, 0, 7)], GEOMETRY)
    assert told.kept_per_layer == [0] * 12
    assert (told.vision_tokens, told.mean_keep, told.flops_fraction) == (0, 1.0, 1.0)


def test_facts_of_several_prompts_are_summed() -> None:
    choice = choose(BOOK, Ask(budget=0.5))
    plan = make_plan(choice.schedule.keep, choice.schedule.rules, 100)
    told = facts(choice, [Prompt(plan, 100, 20), Prompt(None, 0, 5)], GEOMETRY)
    assert told.kept_per_layer == [100] * 2 + [40] * 10
    assert told.vision_tokens == 100
    assert told.mean_keep == pytest.approx(0.5)


def test_no_admitted_prompt_is_a_broken_server() -> None:
    with pytest.raises(VTRError, match="is the vtr plugin loaded"):
        facts(choose(BOOK, Ask()), [], GEOMETRY)


def test_the_list_names_schedules_forms_and_geometry() -> None:
    listed = describe(BOOK)
    assert [item["name"] for item in listed["data"]] == ["full", "searched-half"]
    assert listed["geometry"] == GEOMETRY.to_dict()
    least = {form["name"]: form["least_budget"] for form in listed["forms"]}
    assert least["fastv-<budget>"] == 0.1667
    assert least["vtw-<budget>"] == 0.0833
    assert least["p-sigmoid-<budget>"] == 0.0001


def test_the_listed_inline_example_can_be_asked_for() -> None:
    choice = choose(BOOK, Ask(**describe(BOOK)["inline"]["example"]))
    assert (choice.source, choice.budget) == ("inline", pytest.approx(0.5))


def test_every_listed_form_can_be_asked_for() -> None:
    for form in describe(BOOK)["forms"]:
        for name in (form["example"], form["name"].replace("<budget>", f"{form['least_budget']}")):
            assert choose(BOOK, Ask(schedule=name)).source == "built-in form"
