"""What a search leaves behind: schedule files to serve, and search.json for the report."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vtr_vllm.schedules import Schedule
from vtr_vllm.schedules.whole_file import whole_file
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.pipeline import Result, Scored, Settings
from vtr_vllm.search.statistics import bootstrap_interval
from vtr_vllm.search.study import Cost, Evaluation, Study

REPORT = "report"
"""Folder beside the schedule files: a server reads ``*.json`` of the folder itself only."""


def served(scored: Scored, study: Study, settings: Settings, source: Dataset) -> Schedule:
    """The schedule as it is written: named, and with where it comes from.

    The schedule of a budget is named ``searched-<budget>``, whichever method found it. Nothing in
    it depends on time or machine: the same search writes the same file.
    """
    schedule = scored.schedule
    name = schedule.name if schedule.budget is None else f"searched-{schedule.budget!r}"
    provenance: dict[str, Any] = {
        "scores": scores(scored.evaluation),
        "items": {
            "sha256": source.sha256,
            "search": len(source) - len(study.dataset),
            "scores": len(study.dataset),
        },
        "objective": study.objective,
        "seed": settings.seed,
        "versions": {**study.versions, "scikit-optimize": version("scikit-optimize")},
    }
    return replace(schedule, name=name, method=scored.method, provenance=provenance)


def scores(evaluation: Evaluation) -> dict[str, float]:
    """Accuracy with its 95% bootstrap interval, and the value searched for."""
    low, high = bootstrap_interval([o.score for o in evaluation.outcomes])
    return {
        "accuracy": evaluation.accuracy,
        "low": low,
        "high": high,
        "value": evaluation.value,
        "n": len(evaluation.outcomes),
    }


def write_schedules(folder: Path, schedules: Iterable[Schedule]) -> list[Path]:
    """One file each; OSError passes through."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for schedule in schedules:
        paths.append(folder / f"{schedule.name}.json")
        schedule.save(paths[-1])
    return paths


def search_record(
    meta: Mapping[str, Any],
    search: Study,
    selection: Study,
    result: Result,
    chosen: Iterable[Schedule],
    states: Mapping[str, int],
) -> dict[str, Any]:
    """The whole search as plain JSON; every schedule scored on the selection's items."""
    spent = costs(search, selection)  # looking up what is already scored, below, is no cost
    everything = [
        (method, schedule) for method, found in result.schedules.items() for schedule in found
    ]
    everything += [("searched", schedule) for schedule in chosen if schedule.budget is not None]
    return {
        "meta": {**meta, "unreduced": scores(selection.unreduced())},
        "g_search": [
            {"name": name, "steps": [asdict(step) for step in steps]}
            for name, steps in result.steps.items()
        ],
        "schedules": [_schedule(selection, *each) for each in everything],
        "trials": [
            {
                "search": method,
                "budget": trial.budget,
                "order": trial.order,
                "parameters": dict(trial.parameters),
                "value": trial.value,
                "accuracy": trial.accuracy,
            }
            for method, trials in result.trials.items()
            for trial in trials
        ],
        "rules": _rules(result),
        "cost": [
            {"stage": stage, **asdict(cost), "occupancy": cost.occupancy}
            for stage, cost in spent.items()
        ],
        "journal": states,
    }


def costs(*studies: Study) -> dict[str, Cost]:
    """What each stage took, summed over the studies."""
    total: dict[str, Cost] = {}
    for study in studies:
        for stage, cost in study.costs.items():
            sums = total.setdefault(stage, Cost())
            for name, value in asdict(cost).items():
                setattr(sums, name, getattr(sums, name) + value)
    return total


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write the file at once or not at all; OSError passes through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        json.dump(record, file, indent=1, allow_nan=False)
        file.write("\n")


def _schedule(selection: Study, method: str, schedule: Schedule) -> dict[str, Any]:
    candidate = Candidate.of(schedule, selection.same_n_vision)
    (found,) = selection.evaluate("selection", [candidate])
    return {
        "name": schedule.name,
        "method": method,
        "budget": schedule.budget,
        "mean_keep": schedule.mean_keep,
        "keep": list(schedule.keep),
        "rules": [str(rule) for rule in schedule.rules],
        **scores(found),
    }


def _rules(result: Result) -> dict[str, Any] | None:
    if result.rules is None:
        return None
    return {
        "values": {str(layer): dict(values) for layer, values in result.rules.values.items()},
        "best": {str(layer): str(rule) for layer, rule in result.rules.rules.items()},
        "cut_layers": list(result.rules.cut_layers),
    }
