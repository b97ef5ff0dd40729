"""What metrics and controller are told of one request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from vtr_server.operations.request_observer import RequestObserver, tier_label
from vtr_server.policy.elastic import Elastic
from vtr_server.policy.requested_budget import Bounds, Switch
from vtr_server.policy.schedule_choice import ScheduleChooser
from vtr_server.policy.settings import ElasticSettings, KeySettings
from vtr_server.policy.vtr_answer import facts
from vtr_server.policy.vtr_field import Ask, AutoAnswer, VTRAnswer
from vtr_vllm.errors import (
    BudgetNotAllowed,
    EngineNotReady,
    InvalidBudget,
    RequestTimeout,
    ScheduleError,
)
from vtr_vllm.schedules import ModelGeometry, Plan, ScheduleBook, make_plan

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)
TIERS = {"full": 1.0, "watched": 0.4}
CHOICE = ScheduleChooser(ScheduleBook(GEOMETRY), TIERS).choose(
    Ask(tier="watched"), Bounds(0.0, 1.0), reuse=Switch(wanted=False, explicit=True)
)
KEY = KeySettings(name="watch-test", sha256="0" * 64)
PLAN = make_plan(CHOICE.schedule.keep, CHOICE.schedule.rules, 100)
LABELS = {"tier": "watched", "source": "p-sigmoid-default"}


@dataclass(frozen=True)
class Prompt:
    """Stands for what the engine's admission hook reports."""

    plan: Plan | None = PLAN
    n_vision: int = 100
    n_text: int = 20
    returning: int = 30


@dataclass
class NoLoad:
    """An engine that reports nothing."""

    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0
    first_tokens: tuple[tuple[float, float], ...] = ()


def elastic(load: NoLoad) -> Elastic:
    return Elastic(ElasticSettings(ttft_seconds=1.0), load, lambda *_: None, lambda _: None)


def backlog(controller: Elastic) -> Any:
    return controller.backlog.signals(controller.load, ())


def watch(**more: Any) -> RequestObserver:
    made = {"tiers": TIERS, "bands": (0, 6), "geometry": GEOMETRY, "key": KEY, "elastic": None}
    return RequestObserver(**(made | more))


def known(*prompts: Prompt) -> VTRAnswer:
    return facts(CHOICE, "body", prompts or [Prompt()], GEOMETRY)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def requests() -> dict[str, float]:
    """Outcome -> how many requests of this file's key ended so, whatever else is counted."""
    found: dict[str, float] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name == "vtr_key_requests_total" and sample.labels["key"] == "watch-test":
                outcome = sample.labels["outcome"]
                found[outcome] = found.get(outcome, 0.0) + sample.value
    return found


def grown(before: dict[str, float]) -> dict[str, float]:
    now = requests()
    return {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name)}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (asyncio.CancelledError(), "aborted"),
        (GeneratorExit(), "aborted"),
        (RequestTimeout("late"), "timeout"),
        (InvalidBudget("no"), "client_error"),
        (ScheduleError("no"), "client_error"),
        (BudgetNotAllowed("no"), "refused"),
        (EngineNotReady("no"), "error"),
    ],
)
def test_each_end_is_counted_once_under_its_outcome(error: BaseException, outcome: str) -> None:
    before = requests()
    one = watch()
    one.fail(error)
    one.fail(RuntimeError("again"))
    one.end("ok")
    assert grown(before) == {outcome: 1}


def test_of_an_error_that_is_not_ours_the_gate_says_what_came_of_it() -> None:
    before = requests()
    one = watch()
    one.fail(ValueError("of vLLM's"))
    one.end("client_error")
    assert grown(before) == {"client_error": 1}


def test_what_the_gate_cut_off_has_the_gates_reason() -> None:
    before = requests()
    watch(why_cut_off=lambda: RequestTimeout("late")).fail(asyncio.CancelledError())
    assert grown(before) == {"timeout": 1}


def test_an_answer_is_counted_with_its_tier_and_its_source() -> None:
    before = counted("vtr_requests_total", outcome="ok", **LABELS)
    seconds = counted("vtr_request_seconds_count", tier="watched")
    vision = counted("vtr_vision_tokens_total")
    one = watch()
    one.prompt(Prompt(), known())
    one.end("ok")
    one.fail(asyncio.CancelledError())  # the client closes after the last byte
    assert counted("vtr_requests_total", outcome="ok", **LABELS) == before + 1
    assert counted("vtr_request_seconds_count", tier="watched") == seconds + 1
    assert counted("vtr_vision_tokens_total") == vision + 100


def test_vision_tokens_are_counted_at_admission_also_of_what_never_ends_well() -> None:
    """They were worked on and charged for; a client that leaves changes nothing of that."""
    series = [
        ("vtr_vision_tokens_total", {}),
        ("vtr_key_vision_tokens_total", {"key": "watch-test", "state": "seen"}),
        ("vtr_key_vision_tokens_total", {"key": "watch-test", "state": "kept"}),
        ("vtr_mean_keep_count", {}),
        ("vtr_schedule_requests_total", {"schedule": "form"}),
    ]
    before = [counted(name, **labels) for name, labels in series]
    one = watch()
    for _ in range(2):
        one.prompt(Prompt(), known())
    one.fail(asyncio.CancelledError())
    grown = [
        counted(name, **labels) - old for (name, labels), old in zip(series, before, strict=True)
    ]
    kept = sum(PLAN.counts) / 12
    assert grown == pytest.approx([200, 200, 2 * kept, 2, 1])


def test_a_prompt_with_adaptive_cuts_is_counted_as_it_ran() -> None:
    """What its key is charged for is known at admission: the most that may stay."""
    series = ["vtr_vision_token_layers_kept_total", "vtr_mean_keep_count"]
    charged = {"key": "watch-test", "state": "kept"}
    before = [counted(name) for name in series]
    kept = counted("vtr_key_vision_tokens_total", **charged)
    fewer = replace(PLAN, counts=tuple(count // 2 for count in PLAN.counts))
    one = watch()
    one.prompt(Prompt(), known(), lambda: known(Prompt(fewer)))
    assert [counted(name) for name in series] == before
    most = sum(PLAN.counts) / len(PLAN.counts)
    assert counted("vtr_key_vision_tokens_total", **charged) == pytest.approx(kept + most)
    one.end("ok")
    one.end("ok")
    grown_by = [counted(name) - was for name, was in zip(series, before, strict=True)]
    assert grown_by == [sum(fewer.counts), 1]
    assert counted("vtr_key_vision_tokens_total", **charged) == pytest.approx(kept + most)


def first_tokens() -> list[float]:
    """How many were noted: by the engine's histogram, and by that of streams."""
    names = ("vtr_engine_first_token_seconds_count", "vtr_time_to_first_token_seconds_count")
    return [counted(name, tier="watched") for name in names]


def test_the_first_token_of_a_stream_is_noted_once() -> None:
    before = first_tokens()
    one = watch(first_token_made=lambda: 1.0)
    one.prompt(Prompt(), known())
    one.first_token()
    one.first_token()
    assert first_tokens() == [before[0] + 1, before[1] + 1], "at once"
    one.end("ok")
    assert first_tokens() == [before[0] + 1, before[1] + 1]


@pytest.mark.parametrize("outcome", ["ok", "aborted", "timeout"])
def test_of_an_answer_in_one_piece_the_engine_tells_it_at_the_end(outcome: Any) -> None:
    before = first_tokens()
    name = "vtr_engine_first_token_seconds_sum"
    seconds = counted(name, tier="watched")
    one = watch(arrived=1000.0, first_token_made=lambda: 1002.5)
    one.prompt(Prompt(), known())
    one.end(outcome)
    assert first_tokens() == [before[0] + 1, before[1]]
    assert counted(name, tier="watched") == pytest.approx(seconds + 2.5)


def test_without_a_first_token_none_is_noted() -> None:
    before = first_tokens()
    one = watch()
    one.prompt(Prompt(), known())
    one.end("aborted")
    assert first_tokens() == before


def test_a_prompt_is_in_the_backlog_until_its_first_token() -> None:
    controller = elastic(NoLoad())
    one = watch(elastic=controller)
    one.prompt(Prompt(), known())
    seen = backlog(controller)
    told = known()
    assert seen.backlog == 12 * 20 + sum(told.kept_per_layer)
    [work] = seen.arrived
    assert (work.vision, work.spent) == (0, seen.backlog)
    one.first_token()
    after = backlog(controller)
    assert (after.backlog, after.finished, after.arrived) == (0, seen.backlog, [])
    one.end("ok")
    assert backlog(controller).finished == 0


def test_the_controller_knows_what_it_may_change() -> None:
    controller = elastic(NoLoad())
    auto = AutoAnswer(level=0.5, minimum=0.25, maximum=0.75)
    watch(elastic=controller).prompt(Prompt(), known().model_copy(update={"auto": auto}))
    [work] = backlog(controller).arrived
    assert (work.vision, work.minimum, work.maximum) == (1200, 0.25, 0.75)
    assert work.at((1.0, 0.5), 0.5) == 12 * 20 + 600


def test_the_first_token_of_an_answer_in_one_piece_is_the_engines_to_report() -> None:
    load = NoLoad()
    controller = elastic(load)
    one = watch(elastic=controller)
    one.prompt(Prompt(), known())
    load.first_tokens = ((time.monotonic(), 0.1),)
    controller.tick()
    assert controller.controller.backlog == 0
    one.end("ok")
    assert backlog(controller).finished == 0, "not twice"


@pytest.mark.parametrize("outcome", ["aborted", "error", "timeout"])
def test_a_request_without_an_answer_leaves_the_backlog(outcome: Any) -> None:
    controller = elastic(NoLoad())
    one = watch(elastic=controller)
    one.prompt(Prompt(), known())
    one.prompt(Prompt(None, 0, 7), known(Prompt(None, 0, 7)))
    assert backlog(controller).backlog > 0
    one.end(outcome)
    after = backlog(controller)
    assert (after.backlog, after.finished) == (0, 0)


def test_several_prompts_are_each_worked_on() -> None:
    controller = elastic(NoLoad())
    one = watch(elastic=controller)
    for n_text in (5, 7):
        one.prompt(Prompt(None, 0, n_text), known(Prompt(None, 0, n_text)))
    assert backlog(controller).backlog == 12 * 12
    one.first_token()
    assert backlog(controller).backlog == 12 * 7
    one.end("ok")
    assert backlog(controller).backlog == 0


NAMED: dict[str, float | str] = {"full": 1.0, "lossless": "lossless", "balanced": 0.5}


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        (1e-9, "0.0625"),
        (0.125, "0.125"),
        (0.1250001, "0.1875"),
        (0.25, "0.25"),
        (0.3, "0.375"),
        (0.95, "1.0"),
        (1.0, "full"),
        (0.5, "balanced"),
    ],
)
def test_a_budget_is_named_by_its_tier_or_its_upper_end(budget: float, label: str) -> None:
    assert tier_label(budget, "any", NAMED) == label


def test_a_schedule_is_named_by_the_tier_that_names_it() -> None:
    assert tier_label(0.43, "lossless", NAMED) == "lossless"


@given(st.floats(min_value=0, max_value=1, exclude_min=True), st.text(max_size=8))
def test_every_budget_has_one_of_few_tiers(budget: float, schedule: str) -> None:
    label = tier_label(budget, schedule, NAMED)
    assert label in NAMED or 0 < float(label) <= 1
    assert len(label) <= 8


def test_what_came_from_the_cache_is_counted_once_at_the_end() -> None:
    labels = {"kind": "guided", "state": "cached"}
    before = counted("vtr_kind_vision_tokens_total", **labels)
    came_back = counted("vtr_kind_vision_tokens_total", kind="guided", state="returning")
    watched = watch(vision_cached=lambda: 40)
    watched.prompt(Prompt(), known())
    now = counted("vtr_kind_vision_tokens_total", kind="guided", state="returning")
    assert now == came_back + 30
    assert counted("vtr_kind_vision_tokens_total", **labels) == before
    watched.end("ok")
    watched.end("aborted")
    assert counted("vtr_kind_vision_tokens_total", **labels) == before + 40
    watch(vision_cached=lambda: 40).end("refused")  # never admitted: nothing ran
    assert counted("vtr_kind_vision_tokens_total", **labels) == before + 40
