"""From an ask to a schedule, within a policy."""

from __future__ import annotations

import pytest

from server.asks import Bounds
from server.choice import Choice, Chooser, describe
from server.protocol import Ask
from server.settings import Settings
from tests.server.bad_input import INLINE
from vtr_vllm.errors import (
    InvalidBudget,
    ScheduleError,
    UnknownSchedule,
    UnknownTier,
)
from vtr_vllm.schedules import (
    ModelGeometry,
    RankRule,
    Schedule,
    ScheduleBook,
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
TIERS = Settings().tiers | {"halved": "searched-half", "quick": "fastv-0.5"}
OPEN = Bounds(0.0, 1.0)
CHOOSER = Chooser(BOOK, TIERS)


def choose(ask: Ask, policy: Bounds = OPEN) -> Choice:
    return CHOOSER.choose(ask, policy)


@pytest.mark.parametrize(
    ("ask", "name", "source", "budget"),
    [
        (Ask(), "full", "full", 1.0),
        (Ask(budget=1.0), "full", "full", 1.0),
        (Ask(budget=0.5), "searched-half", "searched", 0.5),
        (Ask(budget=0.25), "p-sigmoid-0.25", "p-sigmoid default", 0.25),
        (Ask(budget=0.75), "interpolated-0.75", "interpolated", 0.75),
        (Ask(tier="full"), "full", "full", 1.0),
        (Ask(tier="economy"), "p-sigmoid-0.25", "p-sigmoid default", 0.25),
        (Ask(tier="balanced"), "searched-half", "searched", 0.5),
        (Ask(tier="halved"), "searched-half", "searched", 0.5),
        (Ask(tier="quick"), "fastv-0.5", "built-in form", 0.5),
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
    choice = choose(ask)
    assert (choice.schedule.name, choice.source, choice.tier) == (name, source, ask.tier)
    assert choice.budget == pytest.approx(budget)


@pytest.mark.parametrize(
    "ask", [Ask(), Ask(budget=1.0), Ask(schedule="full"), Ask(keep=[1.0] * 12, rules=[])]
)
def test_full_budget_puts_nothing_on_the_wire(ask: Ask) -> None:
    assert choose(ask).wire == {}


def test_a_reduced_choice_travels_as_flat_lists() -> None:
    wire = choose(Ask(schedule="searched-half")).wire
    assert wire == {"vtr_keep": [1.0] * 2 + [0.4] * 10, "vtr_rules": ["last"]}


def test_an_inline_schedule_travels_as_it_came() -> None:
    keep, rules = [1.0] * 4 + [0.5] * 4 + [0.0] * 4, ["last-norope", "previous"]
    assert choose(Ask(keep=keep, rules=rules)).wire == {"vtr_keep": keep, "vtr_rules": rules}


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
        choose(Ask(keep=keep, rules=rules))


@pytest.mark.parametrize("field", INLINE, ids=lambda value: f"{value!r:.40}")
def test_every_malformed_inline_schedule_is_refused(field: dict[str, list[object]]) -> None:
    with pytest.raises(ScheduleError) as caught:
        choose(Ask(keep=field["keep"], rules=field["rules"]))
    assert len(str(caught.value)) < 400


def test_an_unknown_name_and_an_impossible_budget_are_refused() -> None:
    with pytest.raises(UnknownSchedule, match="searched-half"):
        choose(Ask(schedule="nosuch"))
    with pytest.raises(InvalidBudget, match="fastv cannot meet"):
        choose(Ask(schedule="fastv-0.01"))


def test_the_list_names_schedules_forms_and_geometry() -> None:
    listed = describe(CHOOSER)
    assert [item["name"] for item in listed["data"]] == ["full", "searched-half"]
    assert listed["geometry"] == GEOMETRY.to_dict()
    assert listed["tiers"] == CHOOSER.offered_tiers()
    assert listed["auto"] is False
    least = {form["name"]: form["least_budget"] for form in listed["forms"]}
    assert least["fastv-<budget>"] == 0.1667
    assert least["vtw-<budget>"] == 0.0833
    assert least["p-sigmoid-<budget>"] == 0.0001


def test_the_listed_inline_example_can_be_asked_for() -> None:
    choice = choose(Ask(**describe(CHOOSER)["inline"]["example"]))
    assert (choice.source, choice.budget) == ("inline", pytest.approx(0.5))


def test_every_listed_form_can_be_asked_for() -> None:
    for form in describe(CHOOSER)["forms"]:
        for name in (form["example"], form["name"].replace("<budget>", f"{form['least_budget']}")):
            assert choose(Ask(schedule=name)).source == "built-in form"


def test_a_tier_is_offered_while_its_schedule_is_stored() -> None:
    assert set(TIERS) - set(CHOOSER.offered_tiers()) == {"lossless"}
    with pytest.raises(UnknownTier, match="tier lossless stands for schedule lossless, which is"):
        choose(Ask(tier="lossless"))
    keep = (1.0,) * 8 + (0.9,) * 4
    stored = Schedule("lossless", GEOMETRY, keep, (RankRule("last"),), method="g-search")
    chooser = Chooser(ScheduleBook(GEOMETRY, [SEARCHED, stored]), TIERS)
    choice = chooser.choose(Ask(tier="lossless"), OPEN)
    assert (choice.tier, choice.schedule) == ("lossless", stored)
    assert chooser.offered_tiers()["lossless"] == stored.mean_keep


def test_an_unknown_tier_names_those_there_are() -> None:
    with pytest.raises(UnknownTier, match="tier 'gold' is unknown; there are full, balanced, eco"):
        choose(Ask(tier="gold"))


def test_every_offered_tier_can_be_asked_for_and_comes_to_its_budget() -> None:
    for name, budget in CHOOSER.offered_tiers().items():
        assert choose(Ask(tier=name)).budget == budget


def test_aliases_are_tiers_stored_budgets_and_auto() -> None:
    names = ["full", "balanced", "economy", "halved", "quick", "0.5"]
    assert CHOOSER.aliases() == names
    assert Chooser(BOOK, TIERS, lambda _: (1.0, 1.0)).aliases() == [*names, "auto"]
