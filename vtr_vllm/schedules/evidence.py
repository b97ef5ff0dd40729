"""What two searched schedules are known to be worth, from the provenance that the search writes."""

import math
from collections.abc import Mapping

from vtr_vllm.schedules.schedule import Schedule

__all__ = ["LEAD", "leads", "of_same_evidence", "value"]

LEAD = 0.02
"""What one must be ahead by, as a share of right answers or in nats: less is luck on a few hundred items."""


def of_same_evidence(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules were scored by the same on the same: items, objective, model, releases.

    On how many items they were searched does not matter.
    """
    first, second = _evidence(one), _evidence(other)
    return None not in first and first == second


def value(schedule: Schedule) -> float:
    """What a schedule of a search came to on items that it had not used; -inf where it does not say."""
    scored = schedule.provenance.get("scores")
    found = scored.get("value") if isinstance(scored, Mapping) else None
    return float(found) if isinstance(found, int | float) else -math.inf


def leads(one: Schedule, other: Schedule) -> bool:
    """Whether ``one`` is known to be worth clearly more than ``other``."""
    return of_same_evidence(one, other) and value(one) > value(other) + LEAD


def _evidence(schedule: Schedule) -> tuple[object, ...]:
    items = schedule.provenance.get("items")
    known = {**items} if isinstance(items, Mapping) else {}
    known.pop("search", None)
    return known or None, *(schedule.provenance.get(name) for name in ("objective", "versions"))
