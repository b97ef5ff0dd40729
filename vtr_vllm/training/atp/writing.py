"""What a training of ATP modules leaves on disk: what an engine serves."""

from __future__ import annotations

from collections.abc import Sequence

from vtr_vllm.atp.artefact import Artefact
from vtr_vllm.schedules import (
    FIRST_ATTENTION_CUT,
    MOST_ADAPTIVE_CUTS,
    ModelGeometry,
    RankRule,
    Schedule,
)

__all__ = ["SCHEDULES", "served", "write"]

SCHEDULES = "schedules"
"""Folder beside the modules."""
RULE = RankRule.parse("atp")
_FALL = 1e-6  # of a keep rate, where a cut lies: it is no token of any prompt


def write(artefact: Artefact, schedule: Schedule | None) -> None:
    """Write the schedule that serves the modules, where there is one, and the modules. OSError passes through."""
    if schedule is not None:
        folder = artefact.facts.folder / SCHEDULES
        folder.mkdir(parents=True, exist_ok=True)
        schedule.save(folder / f"{schedule.name}.json")
    artefact.save()


def served(artefact: Artefact, counts: Sequence[Sequence[int]]) -> Schedule | None:
    """The schedule by which an engine runs the modules' own decisions; None where no schedule can.

    ``counts``: of each held-out item what stayed behind each cut. The most of them is what the schedule lets
    stay, so that blocks are allocated for no more; without items, everything.
    """
    facts = artefact.facts
    if facts.lora is not None or facts.layers[0] < FIRST_ATTENTION_CUT:
        return None
    if len(facts.layers) > MOST_ADAPTIVE_CUTS:
        return None
    geometry = ModelGeometry.from_dict(facts.values["geometry"])
    tokens = facts.grid[0] * facts.grid[1]
    keep, rate = [1.0] * facts.layers[0], 1.0
    ends = [*facts.layers[1:], geometry.layers]
    for number, (first, end) in enumerate(zip(facts.layers, ends, strict=True)):
        most = max((behind[number] for behind in counts), default=tokens)
        rate = min(most / tokens, rate) - _FALL
        keep += [rate] * (end - first)
    return Schedule(
        name="atp",
        geometry=geometry,
        keep=tuple(keep),
        rules=(RULE,) * len(facts.layers),
        method="atp",
        provenance={"target": facts.values["target"], "items": len(counts)},
    )
