"""What the choice among a family's schedules counts."""

from __future__ import annotations

import pytest

from tests.server.operations.test_metrics import told, value
from vtr_server.operations.adaptive_metrics import observe_adaptive
from vtr_server.policy.vtr_field import AdaptiveAnswer, VTRAnswer

SUMS = {
    "vtr_adaptive_keep_promised_total": 0.45,
    "vtr_adaptive_keep_spent_total": 0.6,
    "vtr_adaptive_right_predicted_total": 0.25,
    "vtr_adaptive_right_expected_total": 0.875,
}
CHOICE = AdaptiveAnswer(
    family="family", probability=0.25, expected=0.875, promised=0.45, schedules=["family-2"]
)


def grown(known: VTRAnswer) -> list[float]:
    """What each sum, and the prompts of its schedule, gain."""
    before = [value(name) for name in SUMS], value("vtr_adaptive_prompts_total", schedule="other")
    observe_adaptive(known)
    sums = [value(name) - old for name, old in zip(SUMS, before[0], strict=True)]
    return [*sums, value("vtr_adaptive_prompts_total", schedule="other") - before[1]]


def test_a_choice_is_counted_with_what_was_promised_and_expected_of_it() -> None:
    known = told(0.6).model_copy(update={"schedule": "other", "adaptive": CHOICE})
    assert grown(known) == pytest.approx([*SUMS.values(), 1])


@pytest.mark.parametrize(("choice", "tokens"), [(None, 100), (CHOICE, 0)])
def test_a_prompt_without_a_choice_or_an_image_is_none(
    choice: AdaptiveAnswer | None, tokens: int
) -> None:
    known = told(0.6, vision_tokens=tokens).model_copy(update={"adaptive": choice})
    assert grown(known) == [0] * 5
