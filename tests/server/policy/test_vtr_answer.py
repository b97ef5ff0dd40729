"""What an answer says of itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_server.policy.requested_budget import Bounds
from vtr_server.policy.schedule_choice import ChosenSchedule, ScheduleChooser
from vtr_server.policy.vtr_answer import facts, headers, kind_of, usage_details
from vtr_server.policy.vtr_field import Ask, AutoAnswer, VTRAnswer
from vtr_vllm.errors import VTRError
from vtr_vllm.schedules import ModelGeometry, Plan, ScheduleBook, flops_fraction, make_plan

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)
CHOOSER = ScheduleChooser(ScheduleBook(GEOMETRY), {"economy": 0.25}, lambda b: (0.5, b.maximum))


@dataclass(frozen=True)
class Prompt:
    """Stands for what the engine's admission hook reports."""

    plan: Plan | None
    n_vision: int
    n_text: int


def choice(**ask: object) -> ChosenSchedule:
    return CHOOSER.choose(Ask(**ask), Bounds(0.0, 1.0))  # type: ignore[arg-type]


def reduced(chosen: ChosenSchedule, n_vision: int, n_text: int) -> Prompt:
    plan = make_plan(chosen.schedule.keep, chosen.schedule.rules, n_vision)
    return Prompt(plan, n_vision, n_text)


HALF = choice(schedule="fastv-0.5")


def test_facts_of_a_reduced_prompt() -> None:
    prompt = reduced(HALF, 100, 20)
    told = facts(HALF, "header", [prompt], GEOMETRY)
    assert prompt.plan is not None
    assert told.kept_per_layer == list(prompt.plan.counts)
    assert (told.vision_tokens, told.asked_by, told.budget) == (100, "header", 0.5)
    assert (told.schedule, told.source) == ("fastv-0.5", "built-in-form")
    assert told.mean_keep == pytest.approx(0.5, abs=0.01)
    assert told.flops_fraction == flops_fraction(GEOMETRY, prompt.plan.counts, 100, 20)
    assert (told.tier, told.auto, told.trace) == (None, None, None)
    assert told.per_image_floor == 0.0
    assert facts(HALF.with_floor(0.5), "body", [prompt], GEOMETRY).per_image_floor == 0.5


def test_facts_say_whether_the_schedule_is_reused() -> None:
    for ask, kind in (
        ({"schedule": "uniform-0.5"}, "local"),
        ({"schedule": "fastv-0.5"}, "guided"),
        ({"budget": 0.5}, "local"),  # nothing is stored
        ({"budget": 1.0}, "full"),
    ):
        told = facts(choice(**ask), "body", [Prompt(None, 100, 20)], GEOMETRY)
        assert (told.reuse, told.vision_tokens_cached) == (kind == "local", 0)
        assert kind_of(told) == kind
        assert headers(told)["X-VTR-Reuse"] == ("true" if kind == "local" else "false")


def test_facts_of_an_unreduced_prompt() -> None:
    told = facts(choice(), "default", [Prompt(None, 100, 20)], GEOMETRY)
    assert told.kept_per_layer == [100] * 12
    assert (told.mean_keep, told.flops_fraction) == (1.0, 1.0)


def test_facts_of_text_alone() -> None:
    told = facts(choice(budget=0.25), "body", [Prompt(None, 0, 7)], GEOMETRY)
    assert told.kept_per_layer == [0] * 12
    assert (told.vision_tokens, told.mean_keep, told.flops_fraction) == (0, 1.0, 1.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 600), st.integers(1, 300), st.booleans()), min_size=1, max_size=4
    )
)
def test_facts_of_several_prompts_are_their_sums(given_: list[tuple[int, int, bool]]) -> None:
    prompts = [
        reduced(HALF, vision, text) if cut and vision else Prompt(None, vision, text)
        for vision, text, cut in given_
    ]
    alone = [facts(HALF, "body", [prompt], GEOMETRY) for prompt in prompts]
    told = facts(HALF, "body", prompts, GEOMETRY)
    assert told.vision_tokens == sum(each.vision_tokens for each in alone)
    layers = zip(*(each.kept_per_layer for each in alone), strict=True)
    assert told.kept_per_layer == [sum(layer) for layer in layers]
    fractions = [each.flops_fraction for each in alone]
    assert min(fractions) - 1e-12 <= told.flops_fraction <= max(fractions) + 1e-12


def test_no_admitted_prompt_is_a_broken_server() -> None:
    with pytest.raises(VTRError, match="is the vtr plugin loaded"):
        facts(choice(), "default", [], GEOMETRY)


def test_a_tier_and_an_automatic_choice_are_told() -> None:
    prompt = Prompt(None, 0, 7)
    assert facts(choice(tier="economy"), "model", [prompt], GEOMETRY).tier == "economy"
    told = facts(choice(budget="auto", maximum=0.75), "body", [prompt], GEOMETRY)
    assert told.auto == AutoAnswer(level=0.5, minimum=0.0, maximum=0.75)
    assert told.budget == 0.75


@given(st.floats(0.01, 1.0), st.integers(0, 2000), st.integers(1, 500))
def test_headers_and_usage_say_what_the_body_says(budget: float, vision: int, text: int) -> None:
    chosen = choice(budget=budget)
    prompt = reduced(chosen, vision, text) if vision else Prompt(None, vision, text)
    told = facts(chosen, "body", [prompt], GEOMETRY)
    said = headers(told)
    assert all(value.isascii() and value.isprintable() for value in said.values())
    assert float(said["X-VTR-Budget"]) == pytest.approx(told.budget, rel=1e-5)
    assert int(said["X-VTR-Vision-Tokens"]) == told.vision_tokens
    assert float(said["X-VTR-Mean-Keep"]) == pytest.approx(told.mean_keep, rel=1e-5)
    assert float(said["X-VTR-Flops-Fraction"]) == pytest.approx(told.flops_fraction, rel=1e-5)
    usage = usage_details(told)
    assert usage["vision_tokens"] == told.vision_tokens
    assert usage["vision_tokens_cached"] == told.vision_tokens_cached
    kept = sum(told.kept_per_layer) / GEOMETRY.layers
    assert usage["vision_tokens_kept"] == pytest.approx(kept, abs=1e-3)
    assert (usage["mean_keep"], usage["flops_fraction"]) == (told.mean_keep, told.flops_fraction)


def test_the_names_in_headers_are_those_of_the_facts() -> None:
    told = VTRAnswer(
        budget=0.25,
        schedule="fastv-0.25",
        source="built-in-form",
        vision_tokens=4,
        kept_per_layer=[1],
        mean_keep=0.25,
        flops_fraction=0.5,
    )
    assert headers(told) == {
        "X-VTR-Budget": "0.25",
        "X-VTR-Schedule": "fastv-0.25",
        "X-VTR-Source": "built-in-form",
        "X-VTR-Reuse": "false",
        "X-VTR-Vision-Tokens": "4",
        "X-VTR-Mean-Keep": "0.25",
        "X-VTR-Flops-Fraction": "0.5",
    }
