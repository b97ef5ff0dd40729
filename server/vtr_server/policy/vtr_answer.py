"""What an answer says about itself: in its body, in its headers, and in its usage."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from vtr_server.policy.schedule_choice import ChosenSchedule
from vtr_server.policy.vtr_field import VTRAnswer
from vtr_vllm.errors import VTRError
from vtr_vllm.schedules import ModelGeometry, Plan, prefill_flops

__all__ = [
    "AdmittedRequest",
    "Kind",
    "facts",
    "headers",
    "kept_per_layer",
    "kind_of",
    "usage_details",
]

Kind = Literal["full", "local", "guided"]


class AdmittedRequest(Protocol):
    """What the engine's admission hook says of one prompt."""

    @property
    def plan(self) -> Plan | None:
        """None where the prompt runs unreduced."""

    @property
    def n_vision(self) -> int:
        """Vision tokens in the prompt."""

    @property
    def n_text(self) -> int:
        """All its other tokens."""

    @property
    def returning(self) -> int:
        """Vision tokens that an earlier prompt had at the same places."""


def facts(
    choice: ChosenSchedule,
    asked_by: str,
    admitted: Sequence[AdmittedRequest],
    geometry: ModelGeometry,
) -> VTRAnswer:
    """What the prompts of one request came to, summed over them; before anything ran, so that none
    of their tokens came from the cache yet.

    Raises VTRError without any prompt: the admission hook is then not in place, and nothing is
    known about what ran.
    """
    if not admitted:
        raise VTRError("the engine admitted no prompt of this request; is the vtr plugin loaded?")
    counts = [kept_per_layer(item, geometry) for item in admitted]
    kept = [sum(layer) for layer in zip(*counts, strict=True)]
    n_vision = sum(item.n_vision for item in admitted)
    spent = sum(
        prefill_flops(geometry, plan, item.n_text)
        for plan, item in zip(counts, admitted, strict=True)
    )
    full = sum(
        prefill_flops(geometry, [item.n_vision] * geometry.layers, item.n_text) for item in admitted
    )
    return VTRAnswer(
        budget=choice.budget,
        schedule=choice.schedule.name,
        source=choice.source,
        tier=choice.tier,
        asked_by=asked_by,
        auto=choice.auto,
        adaptive=choice.adaptive,
        per_image_floor=choice.schedule.per_image_floor,
        reuse=choice.reuse,
        vision_tokens=n_vision,
        kept_per_layer=kept,
        mean_keep=sum(kept) / (n_vision * geometry.layers) if n_vision else 1.0,
        flops_fraction=spent / full,
    )


def kind_of(known: VTRAnswer) -> Kind:
    """What reduced a request: nothing, a local schedule, or one whose KV no later request can use."""
    if known.reuse:
        return "local"
    return "full" if known.budget == 1.0 else "guided"


def headers(known: VTRAnswer) -> dict[str, str]:
    """The facts that fit a header each."""
    return {
        "X-VTR-Budget": f"{known.budget:g}",
        "X-VTR-Schedule": known.schedule,
        "X-VTR-Source": known.source,
        "X-VTR-Reuse": str(known.reuse).lower(),
        "X-VTR-Vision-Tokens": str(known.vision_tokens),
        "X-VTR-Mean-Keep": f"{known.mean_keep:.6g}",
        "X-VTR-Flops-Fraction": f"{known.flops_fraction:.6g}",
    }


def usage_details(known: VTRAnswer) -> dict[str, Any]:
    """What ``usage.prompt_tokens_details`` gains; kept tokens are the mean over the layers."""
    return {
        "vision_tokens": known.vision_tokens,
        "vision_tokens_cached": known.vision_tokens_cached,
        "vision_tokens_kept": round(known.vision_tokens * known.mean_keep, 3),
        "mean_keep": known.mean_keep,
        "flops_fraction": known.flops_fraction,
    }


def kept_per_layer(item: AdmittedRequest, geometry: ModelGeometry) -> Sequence[int]:
    """Vision tokens of one prompt that each layer sees."""
    return item.plan.counts if item.plan else (item.n_vision,) * geometry.layers
