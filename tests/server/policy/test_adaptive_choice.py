"""What a request that wants its own schedule gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.server.policy.test_schedule_choice import BOOK, GEOMETRY, OPEN, TIERS
from tests.vtr_vllm.adaptive.families import EASY, HARD, family, prompt
from vtr_server.policy.adaptive_choice import adapted, adapts
from vtr_server.policy.requested_budget import Bounds, Switch
from vtr_server.policy.schedule_choice import ScheduleChooser, describe
from vtr_server.policy.vtr_field import Ask, AutoAnswer
from vtr_vllm.errors import InvalidBudget, RequestError, UnsupportedRequest

FAMILY = family(
    GEOMETRY, ((0.125,) * 6 + (0.0,) * 6, (0.5,) * 6 + (0.25,) * 6, (1.0,) * 6 + (0.5,) * 6)
)
CHOOSER = ScheduleChooser(BOOK, TIERS, lambda b: (0.5, b.minimum or 0.3), family=FAMILY)
ALONE = ScheduleChooser(BOOK, TIERS)
ASKED, BY_DEFAULT = Switch(wanted=True, explicit=True), Switch(wanted=True)


def would(ask: Ask, adapt: Switch, chooser: ScheduleChooser = CHOOSER) -> bool:
    return adapts(chooser, ask, chooser.choose(ask, OPEN), adapt)


@pytest.mark.parametrize(
    "ask", [Ask(budget=0.25), Ask(budget=0.5), Ask(tier="economy"), Ask(budget="auto")]
)
@pytest.mark.parametrize("adapt", [ASKED, BY_DEFAULT])
def test_a_budget_is_met_by_the_family(ask: Ask, adapt: Switch) -> None:
    assert would(ask, adapt)
    assert not would(ask, Switch())
    assert not would(ask, Switch(wanted=False, explicit=True))


@pytest.mark.parametrize("ask", [Ask(), Ask(budget=1.0), Ask(tier="full")])
def test_full_budget_stays_full(ask: Ask) -> None:
    assert not would(ask, ASKED)


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (Ask(schedule="searched-half"), RequestError, "is schedule searched-half"),
        (Ask(schedule="fastv-0.5"), RequestError, "is schedule fastv-0.5"),
        (Ask(tier="halved"), RequestError, "is schedule searched-half"),
        (Ask(keep=[1.0] * 12, rules=[]), RequestError, "is schedule inline"),
        (Ask(budget=0.05), InvalidBudget, r"ask for 0.0625 or more"),
    ],
)
def test_what_cannot_be_is_refused_if_asked_for_and_left_alone_by_default(
    ask: Ask, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        would(ask, ASKED)
    assert not would(ask, BY_DEFAULT)


def test_a_server_without_a_family() -> None:
    with pytest.raises(UnsupportedRequest, match="vtr search family"):
        would(Ask(budget=0.25), ASKED, ALONE)
    assert not would(Ask(budget=0.25), BY_DEFAULT, ALONE)


def test_a_load_that_is_too_high_for_the_family_is_no_fault_of_the_client() -> None:
    low = replace(CHOOSER, auto=lambda _: (0.1, 0.05))
    assert not would(Ask(budget="auto"), ASKED, low)


def test_the_prompt_decides_within_policy() -> None:
    base = CHOOSER.choose(Ask(budget=0.4), OPEN)
    easy, hard = (adapted(CHOOSER, base, OPEN, prompt(word)) for word in (EASY, HARD))
    assert (easy.schedule.name, hard.schedule.name) == ("family-1", "family-3")
    assert easy.budget == hard.budget == 0.4
    assert easy.source == "family"
    assert easy.adaptive is not None
    assert easy.adaptive.promised <= 0.4
    bounded = adapted(CHOOSER, base, Bounds(0.1, 0.5), prompt(EASY))
    assert 0.1 <= bounded.schedule.mean_keep <= 0.5
    with pytest.raises(InvalidBudget, match="for other bounds"):
        adapted(CHOOSER, base, Bounds(0.3, 0.35), prompt(EASY))


def test_bounds_of_auto_hold_for_each_request() -> None:
    base = CHOOSER.choose(Ask(budget="auto", minimum=0.3, maximum=0.5), OPEN)
    assert base.auto == AutoAnswer(level=0.5, minimum=0.3, maximum=0.5)
    with pytest.raises(InvalidBudget, match="between 0.3 and 0.5"):
        adapted(CHOOSER, base, OPEN, prompt(HARD))


def test_confidence_takes_the_larger_schedule() -> None:
    base = CHOOSER.choose(Ask(budget=0.1), OPEN)
    sure = replace(CHOOSER, confidence=0.9)
    assert adapted(CHOOSER, base, OPEN, prompt(HARD)).schedule.name == "family-1"
    assert adapted(sure, base, OPEN, prompt(HARD)).schedule.name == "family-3"


def test_several_prompts_are_all_told_of() -> None:
    base = CHOOSER.choose(Ask(budget=0.4), OPEN)
    first = adapted(CHOOSER, base, OPEN, prompt(HARD)).after(None)
    second = adapted(CHOOSER, base, OPEN, prompt(EASY)).after(first)
    assert second.adaptive is not None
    assert second.adaptive.schedules == ["family-3", "family-1"]
    assert second.schedule.name == "family-1"


def test_a_server_tells_what_it_has() -> None:
    assert describe(ALONE)["family"] is None
    told = describe(CHOOSER)["family"]
    assert told["least_budget"] == 0.0625
    assert [member["name"] for member in told["members"]] == ["family-1", "family-2", "family-3"]
    aliases = CHOOSER.aliases()
    assert "0.5+adapt" in aliases
    assert "auto+adapt" in aliases
    assert not [alias for alias in ALONE.aliases() if "adapt" in alias]
