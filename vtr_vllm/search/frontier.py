"""The held-out frontier: everything that was searched against every baseline, at equal mean keep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from vtr_vllm.schedules import (
    FIRST_ATTENTION_CUT,
    ModelGeometry,
    RankRule,
    Schedule,
    ScheduleBook,
    flops_fraction,
    make_plan,
    uniform,
)
from vtr_vllm.schedules.forms.registry import behind_two_layers
from vtr_vllm.search.baselines import Contender, baseline, baselines, of_schedule
from vtr_vllm.search.candidates import unreduced
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.families import INTERPOLATED, SEARCHED
from vtr_vllm.search.statistics import LEVEL, beside_full
from vtr_vllm.search.study import Study

Rows = list[dict[str, Any]]

SINGLE_CUT = "single-cut"
"""Method: one cut before layer 0 by the best rule there, of a search that tried the local rules."""

HAWK = "hawk"
"""Method: FastV's counts, by attention of heads weighed by the search (HAWK, arXiv 2604.07812)."""


def contenders(
    record: Mapping[str, Any],
    book: ScheduleBook,
    budgets: Sequence[float],
    n_vision: int | None,
    has_cls: bool,
) -> Iterator[Contender]:
    """No reduction, the baselines, what the search found by each method, what is served between.

    ``record`` is a search's search.json; ``book`` the folder of schedules it wrote. Half-way
    between two neighbouring budgets the book's interpolation is tested.
    """
    geometry = book.geometry
    rules = record.get("local_rules")
    weighed = (record.get("rules") or {}).get("weighed") or {}
    yield Contender("full", 1.0, unreduced(geometry), book.by_name("full"))
    for budget in budgets:
        yield from baselines(geometry, budget, n_vision, has_cls)
        if rules is not None:
            rule = RankRule.parse(rules["best"]["0"])
            cut = replace(uniform(geometry, budget), name=f"{SINGLE_CUT}-{budget!r}", rules=(rule,))
            yield of_schedule(SINGLE_CUT, cut, n_vision)
        if (heads := weighed.get(str(FIRST_ATTENTION_CUT))) is not None:
            yield baseline(
                HAWK, partial(behind_two_layers, HAWK, rule=heads), geometry, budget, n_vision
            )
    for found in record["schedules"]:
        yield of_schedule(found["method"], _schedule(found, geometry), n_vision)
    for reuse, name in ((False, INTERPOLATED["guided"]), (True, INTERPOLATED["local"])):
        method = SEARCHED["local" if reuse else "guided"]
        searched = sorted(s["budget"] for s in record["schedules"] if s["method"] == method)
        for low, high in pairwise(searched):
            schedule = book.for_budget(round((low + high) / 2, 6), reuse).schedule
            if reuse:
                schedule = replace(schedule, name=f"{name}-{schedule.budget!r}")
            yield of_schedule(name, schedule, n_vision)


def compare(
    studies: Mapping[str, Study], entries: Sequence[Contender], geometry: ModelGeometry
) -> Rows:
    """Score every contender on every split, with 95% intervals; one row each, as plain JSON.

    ``minus_full`` is the difference to no reduction on the same questions, whose interval is
    narrower than what the two scores' own intervals suggest.
    """
    scored: dict[str, list[Evaluation]] = {}
    candidates = [entry.candidate for entry in entries if entry.candidate is not None]
    for name, study in studies.items():
        study.progress.begin(name)
        scored[name] = study.evaluate(name, candidates)
    first = next(iter(studies.values()))
    book = ScheduleBook(geometry, band_starts=first.band_starts)
    rows = []
    index = 0
    for entry in entries:
        row = _describe(entry, book, first.n_vision, first.n_text)
        if entry.candidate is not None:
            for name, study in studies.items():
                full = study.unreduced()
                row["splits"][name] = _score(study, scored[name][index], full)
            index += 1
        rows.append(row)
    return rows


def _schedule(found: Mapping[str, Any], geometry: ModelGeometry) -> Schedule:
    rules = tuple(RankRule.parse(rule) for rule in found["rules"])
    return Schedule(
        name=found["name"],
        geometry=geometry,
        keep=tuple(found["keep"]),
        rules=rules,
        method=found["method"],
        budget=found["budget"],
    )


def _describe(entry: Contender, book: ScheduleBook, n_vision: int, n_text: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": entry.name,
        "method": entry.method,
        "family": None,
        "budget": entry.budget,
        "mean_keep": None,
        "flops_fraction": None,
        "keep": None,
        "rules": [],
        "reachable": entry.candidate is not None,
        "why_not": entry.why_not,
        "splits": {},
    }
    if entry.schedule is not None:
        schedule = entry.schedule
        plan = make_plan(schedule.keep, schedule.rules, n_vision)
        row["keep"] = list(schedule.keep)
        if schedule.rules:
            row["family"] = "local" if book.reuses(schedule) else "guided"
        row["rules"] = [str(rule) for rule in schedule.rules]
        row["mean_keep"] = plan.mean_keep
        row["flops_fraction"] = flops_fraction(book.geometry, plan.counts, n_vision, n_text)
    return row


def _score(study: Study, found: Evaluation, full: Evaluation) -> dict[str, Any]:
    values = [outcome.score for outcome in found.outcomes]
    kinds: dict[str, list[float]] = {}
    for item, value in zip(study.dataset.items, values, strict=True):
        if item.kind is not None:
            kinds.setdefault(item.kind, []).append(value)
    return {
        "n": len(values),
        **beside_full(values, [outcome.score for outcome in full.outcomes], found.groups),
        "logp": sum(outcome.logprob for outcome in found.outcomes) / len(values),
        "kinds": {kind: {"n": len(v), "score": sum(v) / len(v)} for kind, v in kinds.items()},
    }


def meta(studies: Mapping[str, Study], geometry: ModelGeometry) -> dict[str, Any]:
    """What the rows were measured on."""
    return {
        "fingerprint": geometry.fingerprint,
        "level": LEVEL,
        "splits": {name: study.dataset.facts() for name, study in studies.items()},
    }
