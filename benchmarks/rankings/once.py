"""Ranking once, at the first cut, against ranking at each cut: in the engine, at equal counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rankings.layers import Mask
from vtr_vllm.schedules import FORMS, ModelGeometry, RankRule, Schedule, full
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.statistics import paired_difference
from vtr_vllm.search.study import Study

__all__ = ["Pair", "compare", "describe", "pairs", "rank_once"]

COMPARED = ("p-sigmoid", "pdrop")
BUDGETS = (0.75, 0.5, 0.375, 0.25)
STAGE = "ranking once"


@dataclass(frozen=True)
class Pair:
    """Two schedules of equal counts that differ in how often they rank."""

    form: str
    budget: float
    each: Schedule
    once: Schedule


def rank_once(schedule: Schedule) -> Schedule:
    """Return the schedule with the order of its first cut at every later one."""
    rules = (schedule.rules[0], *[RankRule.parse("previous")] * (len(schedule.rules) - 1))
    return replace(schedule, name=f"{schedule.name}-once", rules=rules, method="explicit")


def pairs(geometry: ModelGeometry, budgets: tuple[float, ...] = BUDGETS) -> list[Pair]:
    """Return what is compared: every form at every budget, ranked by ``last``."""
    found = []
    for form in COMPARED:
        for budget in budgets:
            schedule = FORMS[form](geometry, budget)
            found.append(Pair(form, budget, schedule, rank_once(schedule)))
    return found


def describe(
    pair: Pair, each: Mask, once: Mask, kinds: npt.NDArray[np.str_], n_vision: int
) -> dict[str, Any]:
    """Return one comparison for the results file; all arrays are ``[n]``, the masks right answers."""
    gain = each.astype(np.float64) - once
    mean, low, high = paired_difference([*map(float, each)], [*map(float, once)])
    counts = pair.each.counts(n_vision)
    return {
        "form": pair.form,
        "budget": pair.budget,
        "cuts": {str(cut): counts[cut] for cut in pair.each.cuts},
        "each": float(each.mean()),
        "once": float(once.mean()),
        "gain": mean,
        "low": low,
        "high": high,
        "gain_by_kind": {kind: float(gain[kinds == kind].mean()) for kind in sorted({*kinds})},
    }


def compare(study: Study, budgets: tuple[float, ...]) -> dict[str, Any]:
    """Answer every question under every schedule and describe every pair."""
    table = pairs(study.geometry, budgets)
    schedules = [schedule for pair in table for schedule in (pair.each, pair.once)]
    n_vision = study.n_vision
    asked = [Candidate.of(s, n_vision) for s in (full(study.geometry), *schedules)]
    study.progress.plan({STAGE: len({*asked}) * len(study.dataset)})
    study.progress.begin(STAGE)
    found = study.evaluate(STAGE, asked)
    right = [np.array([o.score == 1 for o in each.outcomes]) for each in found]
    kinds = np.array([str(item.kind) for item in study.dataset.items])
    rows = zip(table, right[1::2], right[2::2], strict=True)
    return {
        "dtype": study.versions["dtype"],
        "full": float(right[0].mean()),
        "pairs": [describe(pair, each, once, kinds, n_vision) for pair, each, once in rows],
    }
