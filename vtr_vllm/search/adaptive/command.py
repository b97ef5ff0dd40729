"""``vtr search family``: search, fit, write the family and what it is worth."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vtr_vllm.adaptive import ScheduleFamily
from vtr_vllm.adaptive.family import FILE, MOST_PROMPTS, Calibration, member
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import ScheduleBook
from vtr_vllm.search.adaptive import evidence, fitting
from vtr_vllm.search.adaptive.evidence import Outcomes
from vtr_vllm.search.adaptive.pool import movable, pool
from vtr_vllm.search.adaptive.refinement import STAGE, FamilySearch, Refinement
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.records import report_folder, write_json
from vtr_vllm.search.session import Backend, check_answers, open_session
from vtr_vllm.search.study import Study
from vtr_vllm.search_options import FamilyOptions

NAME = "family"
CHOSEN = "one schedule"
"""How rows name the schedule that the folder's book has for a budget: the same for every prompt."""


def search_family(
    asked: FamilyOptions,
    options: argparse.Namespace,
    data: Dataset,
    splits: Mapping[str, Dataset],
    backend: Backend,
    progress: Progress,
) -> None:
    """Write ``adaptive/family.json`` into ``options.out``, and ``report/adaptive.json`` beside it."""
    check_answers(asked.objective, data, *splits.values())
    settings = Refinement(
        budgets=sorted(asked.budgets, reverse=True),
        members=asked.members,
        rounds=asked.rounds,
        items=asked.items,
        seed=asked.seed,
    )
    _check(settings, data)
    with open_session(
        backend, options.out, options.journal, asked.objective, asked.seed, progress
    ) as session:
        study = session.study(data)
        book = ScheduleBook.from_folder(study.geometry, options.out, study.band_starts)
        first = _first(study, book, asked)
        if options.dry_run:
            print(_estimate(len(first), settings, data, splits))
            return
        progress.plan(_plan(len(first), settings, data, splits))
        family, calibration = _search(study, settings, first)
        family = replace(family, provenance=_provenance(study, asked, calibration))
        family.save(options.out / FILE)
        progress.found(f"wrote {options.out / FILE}", [each.name for each in family.members])
        found = {}
        for name, dataset in splits.items():
            progress.begin(name)
            outcomes, rest = _held_out(session.study(dataset), family, book, settings)
            budgets = settings.budgets
            rows = evidence.rows(family, calibration, outcomes, budgets, asked.seed)
            found[name] = [*rest, *rows]
    if found:
        meta = {"command": options.command_line, "family": family.name, "data": data.facts()}
        record = {"meta": meta, "members": family.describe()["members"], "splits": found}
        write_json(report_folder(options.out) / "adaptive.json", record)
        print(evidence.table(found))
    progress.end("done", f"wrote {options.out / FILE}")


def _first(study: Study, book: ScheduleBook, asked: FamilyOptions) -> list[Candidate]:
    """What members are first chosen from."""
    made = [book.by_name(name) for name in book.names()]
    if asked.pool == "all":
        return pool(study, made, asked.budgets)
    found = movable(study, made)
    if len(found) < asked.members:
        raise ConfigurationError(
            f"--pool folder: {len(found)} schedules in the folder can be members, and --members is"
            f" {asked.members}; have more of them there, or ask for fewer"
        )
    return found


def _check(settings: Refinement, data: Dataset) -> None:
    least = 4 * settings.least
    if len(data) < least:
        raise ConfigurationError(
            f"{data.path} has {len(data)} items; a family wants at least {least}, and 1,000 to tell"
            " what a prompt needs"
        )


def _search(
    study: Study, settings: Refinement, first: Sequence[Candidate]
) -> tuple[ScheduleFamily, Outcomes]:
    study.progress.begin("unreduced")
    full = [outcome.score for outcome in study.unreduced().outcomes]
    study.progress.begin(STAGE)
    search = FamilySearch(study, study.prompts, settings)
    search.add(first)
    members = search.run()
    study.progress.begin("members")
    outcomes = _outcomes(study, members, full)
    predictor, across = fitting.fit(
        fitting.matrix(outcomes.prompts), outcomes.scores, outcomes.groups, settings.seed
    )
    schedules = tuple(
        member(f"{NAME}-{number}", study.geometry, each.keep, each.rules)
        for number, each in enumerate(members, 1)
    )
    draws = np.array([prompt.draw for prompt in outcomes.prompts])
    known = Calibration(across[:MOST_PROMPTS], draws[:MOST_PROMPTS])
    # as a server will read it: rounded, so that what is measured here is what runs there
    return ScheduleFamily.from_json(
        ScheduleFamily(NAME, schedules, predictor, known).to_json()
    ), outcomes


def _outcomes(study: Study, members: Sequence[Candidate], full: Sequence[float]) -> Outcomes:
    scored = study.evaluate("members", list(members))
    scores = np.array([[o.score for o in each.outcomes] for each in scored]).T
    kinds = [item.kind for item in study.dataset.items]
    return Outcomes(study.prompts, kinds, scores, full, study.dataset.groups)


def _held_out(
    study: Study, family: ScheduleFamily, book: ScheduleBook, settings: Refinement
) -> tuple[Outcomes, list[evidence.Row]]:
    """How the members score, and how the book's one schedule does at each budget."""
    full = [outcome.score for outcome in study.unreduced().outcomes]
    outcomes = _outcomes(study, [Candidate.of(each) for each in family.members], full)
    groups = study.dataset.groups
    rows = [evidence.row("full", 1.0, 1.0, 1.0, full, full, groups)]
    for budget in settings.budgets:
        selection = book.for_budget(budget)
        schedule = selection.schedule
        (found,) = study.evaluate("members", [Candidate.of(schedule, study.same_n_vision)])
        scores = [outcome.score for outcome in found.outcomes]
        # a curve that nobody searched for this model is no fair rival
        name = CHOSEN if selection.source == "searched" else f"{CHOSEN} ({selection.source})"
        rows.append(evidence.row(name, budget, budget, schedule.mean_keep, scores, full, groups))
    return outcomes, rows


def _provenance(study: Study, asked: FamilyOptions, calibration: Outcomes) -> dict[str, Any]:
    scores = calibration.scores.mean(axis=0)
    return {
        "items": {"sha256": study.dataset.sha256, "n": len(study.dataset)},
        "objective": study.objective,
        "seed": asked.seed,
        "scores": [round(float(score), 4) for score in scores],
        "full": round(float(np.mean(calibration.full)), 4),
        "versions": dict(study.versions),
    }


def _plan(
    candidates: int, settings: Refinement, data: Dataset, splits: Mapping[str, Dataset]
) -> dict[str, int]:
    """Requests per stage, about: how many schedules a round searches is guessed."""
    used = min(settings.items, len(data))
    searched = settings.rounds * len(settings.budgets) * (settings.members - 1)
    # a move is judged on the prompts of one schedule, and half of the sweeps find nothing better
    moves = settings.moves * settings.sweeps // 2 * min(100, used // 3)
    held_out = settings.members + len(settings.budgets) + 1
    return {
        "unreduced": 2 * len(data),
        STAGE: candidates * used + searched * (moves + used),
        "members": settings.members * len(data),
        **{name: held_out * len(dataset) for name, dataset in splits.items()},
    }


def _estimate(
    candidates: int, settings: Refinement, data: Dataset, splits: Mapping[str, Dataset]
) -> str:
    planned = _plan(candidates, settings, data, splits)
    lines = [f"{stage}: about {requests} requests" for stage, requests in planned.items()]
    return "\n".join([*lines, f"in all about {sum(planned.values())} requests"])
