"""From what was asked to a schedule, and from what was admitted to the facts of an answer."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.protocol import Ask, Facts
from vtr_vllm.errors import InvalidBudget, VTRError
from vtr_vllm.schedules import (
    FORMS,
    ModelGeometry,
    Plan,
    Schedule,
    ScheduleBook,
    explicit,
    p_sigmoid,
    prefill_flops,
)

__all__ = ["AdmittedRequest", "Choice", "choose", "describe", "facts"]


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


@dataclass(frozen=True)
class Choice:
    """The schedule that a request runs with."""

    budget: float
    schedule: Schedule
    source: str

    @property
    def wire(self) -> dict[str, list[float] | list[str]]:
        """What travels to the engine; nothing at full budget, which is vLLM's own path."""
        return {} if self.schedule.mean_keep == 1.0 else self.schedule.wire()


def choose(book: ScheduleBook, ask: Ask) -> Choice:
    """Raises InvalidBudget or UnknownSchedule as the book does, ScheduleError as Schedule does."""
    if ask.keep is not None and ask.rules is not None:
        schedule = explicit(book.geometry, ask.keep, ask.rules, name="inline")
        return Choice(schedule.mean_keep, schedule, "inline")
    if ask.schedule is None:
        budget = 1.0 if ask.budget is None else ask.budget
        selection = book.for_budget(budget)
        return Choice(budget, selection.schedule, selection.source)
    schedule = book.by_name(ask.schedule)
    stored = schedule.name in book.names()
    source = "full" if schedule.name == "full" else "searched" if stored else "built-in form"
    budget = schedule.mean_keep if schedule.budget is None else schedule.budget
    return Choice(budget, schedule, source)


def facts(choice: Choice, admitted: Sequence[AdmittedRequest], geometry: ModelGeometry) -> Facts:
    """What the prompts of one request came to, summed over them.

    Raises VTRError without any prompt: the admission hook is then not in place, and nothing is
    known about what ran.
    """
    if not admitted:
        raise VTRError("the engine admitted no prompt of this request; is the vtr plugin loaded?")
    counts = [
        item.plan.counts if item.plan else (item.n_vision,) * geometry.layers for item in admitted
    ]
    kept = [sum(layer) for layer in zip(*counts, strict=True)]
    n_vision = sum(item.n_vision for item in admitted)
    spent = sum(
        prefill_flops(geometry, plan, item.n_text)
        for plan, item in zip(counts, admitted, strict=True)
    )
    full = sum(
        prefill_flops(geometry, [item.n_vision] * geometry.layers, item.n_text) for item in admitted
    )
    return Facts(
        budget=choice.budget,
        schedule=choice.schedule.name,
        source=choice.source,
        vision_tokens=n_vision,
        kept_per_layer=kept,
        mean_keep=sum(kept) / (n_vision * geometry.layers) if n_vision else 1.0,
        flops_fraction=spent / full,
    )


def describe(book: ScheduleBook) -> dict[str, Any]:
    """The body of GET /v1/schedules; the same as long as the book is."""
    return {
        "object": "list",
        "data": book.describe(),
        "forms": [_describe_form(book.geometry, form) for form in FORMS if form != "full"],
        "inline": _describe_inline(book.geometry),
        "budget": {
            "exclusive_minimum": 0.0,
            "maximum": 1.0,
            "default": 1.0,
            "means": "mean share of the vision tokens kept over all layers",
        },
        "geometry": book.geometry.to_dict(),
        "fingerprint": book.geometry.fingerprint,
    }


def _describe_form(geometry: ModelGeometry, form: str) -> dict[str, Any]:
    return {
        "name": f"{form}-<budget>",
        "example": f"{form}-0.5",
        "least_budget": _least_budget(geometry, form),
        "description": inspect.getdoc(FORMS[form]),
    }


def _describe_inline(geometry: ModelGeometry) -> dict[str, Any]:
    example = p_sigmoid(geometry, 0.5)
    return {
        "keep": f"{geometry.layers} keep rates in [0, 1], one per layer, never rising",
        "rules": "one rank rule per cut, in depth order; empty where every rate is 1",
        "example": {
            "keep": list(example.keep),
            "rules": [str(rule) for rule in example.rules],
        },
    }


def _least_budget(geometry: ModelGeometry, form: str) -> float | None:
    """The least budget of four decimals, as in a form's name, that this model allows."""
    for step in range(1, 10_001):
        try:
            FORMS[form](geometry, step / 10_000)
        except InvalidBudget:
            continue
        return step / 10_000
    return None
