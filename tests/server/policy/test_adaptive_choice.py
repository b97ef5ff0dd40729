"""What a request that wants its own schedule gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.server.bad_input import chat_body
from tests.server.conftest import Server
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
    found = FAMILY.choose(prompt(EASY), 0.4)
    assert easy.adaptive.probability == found.probability
    assert easy.adaptive.expected == found.expected != found.probability
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


# On a server, whose family is in tests/server/conftest.py


def question_body(server: Server, question: str, **more: object) -> dict[str, Any]:
    """A question about an image."""
    body = chat_body(server.model, **more)
    body["messages"][0]["content"][1]["text"] = question
    return body


def asked(server: Server, question: str, vtr: object) -> dict[str, Any]:
    """The ``vtr`` of the answer."""
    body = question_body(server, question, vtr=vtr)
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["vtr"]
    return found


EASY_QUESTION, HARD_QUESTION = "Is there a B?", "What color is the B?"


@pytest.mark.engine
def test_each_question_gets_the_schedule_that_it_needs(server: Server) -> None:
    easy = asked(server, EASY_QUESTION, {"budget": 0.45, "adapt": True})
    hard = asked(server, HARD_QUESTION, {"budget": 0.45, "adapt": True})
    assert (easy["schedule"], hard["schedule"]) == ("family-1", "family-3")
    assert easy["source"] == hard["source"] == "family"
    assert easy["budget"] == 0.45
    assert easy["mean_keep"] == pytest.approx(0.125, abs=0.01)
    assert hard["mean_keep"] == pytest.approx(0.75, abs=0.01)
    assert hard["adaptive"]["schedules"] == ["family-3"]
    assert hard["adaptive"]["promised"] == pytest.approx(0.4375, abs=0.01)
    plain = asked(server, EASY_QUESTION, {"budget": 0.45, "adapt": False})
    assert plain["adaptive"] is None
    assert plain["source"] != "family"


@pytest.mark.engine
def test_header_and_alias_ask_for_it_too(server: Server) -> None:
    body = question_body(server, HARD_QUESTION)
    with server.client() as client:
        by_header = client.post(
            "/v1/chat/completions", json=body, headers={"X-VTR-Budget": "0.45+adapt"}
        )
        named = body | {"model": f"{server.model}@0.45+adapt"}
        by_alias = client.post("/v1/chat/completions", json=named)
        listed = {card["id"] for card in client.get("/v1/models").json()["data"]}
    for answer in (by_header, by_alias):
        assert answer.json()["vtr"]["schedule"] == "family-3", answer.text
        assert answer.headers["X-VTR-Source"] == "family"
    assert f"{server.model}@0.5+adapt" in listed


@pytest.mark.engine
def test_what_was_chosen_is_counted(server: Server) -> None:
    def counts() -> dict[str, float]:
        with server.client() as client:
            lines = client.get("/metrics").text.splitlines()
        found = (line.rpartition(" ") for line in lines if line.startswith("vtr_adaptive_"))
        return {name: float(value) for name, _, value in found}

    def gained_by(budget: float) -> tuple[dict[str, float], dict[str, float]]:
        before = counts()
        told = asked(server, HARD_QUESTION, {"budget": budget, "adapt": True})
        after = counts()
        return {name: n - before.get(name, 0.0) for name, n in after.items()}, told["adaptive"]

    gained, _ = gained_by(0.45)
    assert gained['vtr_adaptive_prompts_total{schedule="family-3"}'] == 1
    assert gained["vtr_adaptive_keep_spent_total"] == pytest.approx(0.75, abs=0.01)
    assert gained["vtr_adaptive_keep_promised_total"] == pytest.approx(0.4375, abs=0.01)
    gained, told = gained_by(0.125)  # too little for this question, if not for half of calibration
    predicted, expected = (
        gained[f"vtr_adaptive_right_{name}_total"] for name in ("predicted", "expected")
    )
    assert (predicted, expected) == pytest.approx((told["probability"], told["expected"]))
    assert predicted < 0.1 < 0.4 < expected < 0.6


@pytest.mark.engine
def test_prompts_of_one_request_are_told_of_one_by_one(server: Server) -> None:
    body = {
        "model": server.model,
        "prompt": [EASY_QUESTION, HARD_QUESTION],
        "max_tokens": 1,
        "vtr": {"budget": 0.45, "adapt": True},
    }
    with server.client() as client:
        found = client.post("/v1/completions", json=body).json()["vtr"]
    assert sorted(found["adaptive"]["schedules"]) == ["family-1", "family-3"]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("vtr", "said"),
    [
        ({"schedule": "stored-half", "adapt": True}, "is schedule stored-half"),
        ({"budget": 0.5, "adapt": True, "reuse": True}, "reuse and adapt are both true"),
        ({"max_flops_fraction": 0.5, "adapt": True}, "do not go together"),
        ({"budget": 0.01, "adapt": True}, "ask for 0.125 or more"),
        ({"budget": 0.5, "adapt": "yes"}, "it must be true or false"),
    ],
)
def test_what_cannot_be_is_refused_with_a_next_step(server: Server, vtr: object, said: str) -> None:
    with server.client() as client:
        answer = client.post(
            "/v1/chat/completions", json=question_body(server, EASY_QUESTION, vtr=vtr)
        )
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
