"""What a search leaves behind: schedule files to serve, and search.json for the report."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules import Schedule
from vtr_vllm.search.families import SEARCHED, Family
from vtr_vllm.search.pipeline import HeldOutScores, Result, Scored, scores
from vtr_vllm.search.rule_search import RuleTable
from vtr_vllm.search.study import Cost, Study
from vtr_vllm.whole_file import whole_file

REPORT = "report"
"""Folder beside the schedule files: a server reads ``*.json`` of the folder itself only."""


def report_folder(folder: Path) -> Path:
    """Where a search's report lies."""
    return folder / REPORT


def served(
    scored: Scored,
    search: Study,
    selection: Study,
    seed: int,
    source: str,
    family: Family = "guided",
) -> Schedule:
    """The schedule as it is written: named, and with where it comes from.

    ``source`` is the SHA-256 of all the data. The schedule of a budget is named
    ``searched-<budget>``, of the local family ``local-searched-<budget>``, whichever method found it.
    Nothing in it depends on time or machine: the
    same search writes the same file.
    """
    schedule = scored.schedule
    name = schedule.name if schedule.budget is None else searched_name(schedule.budget, family)
    provenance: dict[str, Any] = {
        "scores": scored.scores,
        "items": {
            "sha256": source,
            "search": len(search.dataset),
            "scores": len(selection.dataset),
            "scored_on": selection.dataset.sha256,
        },
        "objective": selection.objective,
        "seed": seed,
        "versions": {**selection.versions, "scikit-optimize": version("scikit-optimize")},
    }
    return replace(schedule, name=name, method=scored.method, provenance=provenance)


def searched_name(budget: float, family: Family) -> str:
    """What the best schedule of a budget is served as."""
    return f"{SEARCHED[family]}-{budget!r}"


def searched_names(budget: float) -> list[str]:
    """What the best schedule of a budget may be served as, in either family."""
    return [searched_name(budget, family) for family in SEARCHED]


def write_schedules(folder: Path, schedules: Iterable[Schedule]) -> list[Path]:
    """One file each; OSError passes through."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for schedule in schedules:
        paths.append(folder / f"{schedule.name}.json")
        schedule.save(paths[-1])
    return paths


def read_schedules(folder: Path) -> dict[str, Schedule]:
    """The schedules of a folder by name; files that are none are left out."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(ScheduleError, OSError):
            schedule = Schedule.load(path)
            found[schedule.name] = schedule
    return found


def search_record(
    meta: Mapping[str, Any],
    search: Study,
    selection: HeldOutScores,
    result: Result,
    offered: Iterable[Schedule],
    states: Mapping[str, int],
) -> dict[str, Any]:
    """The search so far as plain JSON; every schedule scored on the selection's items.

    ``offered``: the schedule files of the folder that stand for what was found, their scores in them.
    """
    found = [
        _schedule(scored.schedule, scored.method, selection.family(scored.schedule), scored.scores)
        for scored in selection.scored(result)
    ]
    for schedule in offered:
        if schedule.budget is not None:
            family = selection.family(schedule)
            known: Any = schedule.provenance["scores"]
            found.append(_schedule(schedule, SEARCHED[family], family, known))
    return {
        "meta": {**meta, "unreduced": scores(selection.unreduced)},
        "g_search": [
            {"name": name, "steps": [asdict(step) for step in steps]}
            for name, steps in result.steps.items()
        ],
        "schedules": found,
        "trials": [
            {
                "search": method,
                "budget": trial.budget,
                "order": trial.order,
                "parameters": dict(trial.parameters),
                "value": trial.value,
                "accuracy": trial.accuracy,
                "taken": trial.taken,
            }
            for method, trials in result.trials.items()
            for trial in trials
        ],
        "rules": _rules(result.rules.get("guided")),
        "local_rules": _rules(result.rules.get("local")),
        "cost": [
            {"stage": stage, **asdict(cost), "occupancy": cost.occupancy}
            for stage, cost in costs(search, selection.study).items()
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


def _schedule(
    schedule: Schedule, method: str, family: Family, known: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "method": method,
        "family": family,
        "budget": schedule.budget,
        "mean_keep": schedule.mean_keep,
        "keep": list(schedule.keep),
        "rules": [str(rule) for rule in schedule.rules],
        **known,
    }


def _rules(table: RuleTable | None) -> dict[str, Any] | None:
    if table is None:
        return None
    return {
        "values": {str(layer): dict(values) for layer, values in table.values.items()},
        "best": {str(layer): str(rule) for layer, rule in table.rules.items()},
        "cut_layers": list(table.cut_layers),
        "weighed": {str(layer): str(rule) for layer, rule in table.weighed.items()},
    }
