"""What each command of ``vtr search`` does, after its flags are read."""

import argparse
import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from vtr_vllm.errors import ConfigurationError, TimeLimitReached, VTRError
from vtr_vllm.photo.parts import FOLDER
from vtr_vllm.schedules import ScheduleBook, p_sigmoid
from vtr_vllm.search import converters, frontier, pipeline, records
from vtr_vllm.search.answers import EngineOptions
from vtr_vllm.search.calibration import Dataset, check_disjoint
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.output import Output, write_report
from vtr_vllm.search.pipeline import HeldOutScores
from vtr_vllm.search.progress import Progress, duration
from vtr_vllm.search.records import report_folder
from vtr_vllm.search.report_data import read_frontier, read_search
from vtr_vllm.search.session import (
    Backend,
    Session,
    check_answers,
    open_session,
    split,
)
from vtr_vllm.search.statistics import sample_size_report
from vtr_vllm.search.study import BLOCK, Study
from vtr_vllm.search_options import BackendOptions, FamilyOptions, SearchOptions

Splits = Sequence[tuple[str, Path]]

_CONVERTED_WITH = {
    "images": ("llava", "photo"),
    "turns": ("llava",),
    "metric": ("llava", "vlmevalkit"),
    "count": ("demo", "photo"),
}
"""Flags of ``convert``, and the formats that they are for."""


def search(options: argparse.Namespace) -> None:
    """``vtr search g-search|p-sigmoid|all``: search, write schedules, write the report."""
    with _progress(options) as progress:
        _search(options, progress)


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[Progress]:
    """Live progress, which says so when the command does not come to its end."""
    progress = Progress(options.events)
    try:
        yield progress
    except (KeyboardInterrupt, SystemExit):
        progress.end("failed", "stopped")
        raise
    except (VTRError, OSError) as err:
        progress.end("failed", str(err))
        raise


def _search(options: argparse.Namespace, progress: Progress) -> None:
    asked: SearchOptions = options.asked
    data = Dataset.load(Path(asked.data))
    first, rest = split(data)
    if asked.items is not None:
        first = first.take(min(asked.items, len(first)))
    heldout = [("heldout", Path(asked.heldout))] if asked.heldout is not None else []
    others = _load_heldout(heldout, data)
    check_answers(asked.objective, data, *others.values())
    backend = _backend(asked, asked.model, data, *others.values())
    with open_session(
        backend, options.out, options.journal, asked.objective, asked.seed, progress
    ) as session:
        # from here on: reading data and loading a model may take minutes of their own
        until = math.inf if asked.max_minutes is None else monotonic() + 60 * asked.max_minutes
        study, selection = session.study(first, until), session.study(rest)
        bands = () if asked.family == "guided" else study.band_starts
        try:
            sizes = study.geometry, study.n_vision, len(first), len(rest)
        except TimeLimitReached:
            finished, said = False, f"wrote nothing yet to {options.out}"
        else:
            plan = pipeline.plan(asked, *sizes, bands)
            if options.dry_run:
                print(_estimate(study, plan))
                return
            progress.plan(plan)
            meta = _meta(options, study, data)
            scores = HeldOutScores(selection)
            output = Output(options.out, meta, data.sha256, study, scores, session.journal)
            finished, said = _run(study, asked, output), str(output)
        if finished and others:
            record = read_search(report_folder(options.out))
            _compare(options, session, record, others)
            write_report(options.out)
    if not finished:
        limit = f"the time limit of {asked.max_minutes:g} minutes is reached"
        said = f"{limit}; {said}: the same command goes on from here"
    progress.end("done", said)


def _run(study: Study, asked: SearchOptions, output: Output) -> bool:
    """Search and write; False where the time did not suffice."""
    try:
        result = pipeline.run(study, asked, output.write)
    except TimeLimitReached:
        return False
    output.write(result, finished=True)
    full = output.selection.unreduced
    report = sample_size_report([outcome.score for outcome in full.outcomes], full.groups)
    study.progress.step(f"sample size: {report}")
    return True


def family(options: argparse.Namespace) -> None:
    """``vtr search family``: schedules searched together, and what chooses among them."""
    from vtr_vllm.search.adaptive.command import search_family  # loads scikit-learn

    asked: FamilyOptions = options.asked
    with _progress(options) as progress:
        data = Dataset.load(Path(asked.data))
        splits = _load_heldout(options.splits or (), data)
        backend = _backend(asked, asked.model, data, *splits.values())
        search_family(asked, options, data, splits, backend, progress)


def compare(options: argparse.Namespace) -> None:
    """``vtr search compare``: score everything on held-out data, write frontier.json."""
    with _progress(options) as progress:
        _compare_again(options, progress)


def _compare_again(options: argparse.Namespace, progress: Progress) -> None:
    record = read_search(report_folder(options.out))
    path = options.data or Path(record["meta"]["data"]["path"])
    if not path.exists():
        raise ConfigurationError(
            f"the calibration data of {options.out} is not at {path}; say with --data FILE where it"
            " lies now, so that an overlap with the held-out data can be ruled out"
        )
    calibration = Dataset.load(path)
    if calibration.sha256 != record["meta"]["data"]["sha256"]:
        raise ConfigurationError(
            f"{calibration.path} is not the data that {options.out} was searched on; name that with"
            " --data FILE, so that an overlap with the held-out data can be ruled out"
        )
    others = _load_heldout(options.splits, calibration)
    check_answers(record["meta"]["objective"], *others.values())
    versions = record["meta"]["versions"]
    asked = _as_searched(options.asked, versions)
    backend = _backend(asked, record["meta"]["model"], *others.values())
    with open_session(
        backend,
        options.out,
        options.journal,
        record["meta"]["objective"],
        record["meta"]["seed"],
        progress,
    ) as session:
        if other := _differing(versions, session.evaluator.versions):
            progress.step(f"warning: other than in the search: {other}")
        _compare(options, session, record, others)
    write_report(options.out)
    progress.end("done", f"wrote {report_folder(options.out) / 'frontier.json'}")


def _as_searched(asked: BackendOptions, versions: Mapping[str, str]) -> BackendOptions:
    """What is asked of the engine; of what is left out, what the search asked."""
    searched: dict[str, Any] = {}
    if "max_tokens" in versions:
        searched["max_tokens"] = int(versions["max_tokens"])
    if "engine_args" in versions and not asked.servers:
        searched["engine_args"] = json.loads(versions["engine_args"])
    left = {name: value for name, value in searched.items() if name not in asked.model_fields_set}
    return asked.model_copy(update=left)


def _differing(searched: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What of the versions is another than in the search, in words; empty for nothing."""
    names = sorted(name for name in {*searched, *now} if searched.get(name) != now.get(name))
    return ", ".join(f"{name} {now.get(name)} and not {searched.get(name)}" for name in names)


def report(options: argparse.Namespace) -> None:
    """``vtr search report``: HTML and PNG; the tables for people who write docs to stdout."""
    from vtr_vllm.search.report import cost_table, frontier_table, kinds_table

    folder = report_folder(options.out)
    page = write_report(options.out)
    print(cost_table(read_search(folder)))
    compared = read_frontier(folder)
    if compared is not None:
        print(frontier_table(compared))
        print(kinds_table(compared))
    print(page)


def convert(options: argparse.Namespace) -> None:
    """``vtr search convert``: write calibration data; raises ConfigurationError for others' flags."""
    for flag, formats in _CONVERTED_WITH.items():
        if getattr(options, flag) is not None and options.format not in formats:
            raise ConfigurationError(
                f"--{flag} is for {' and '.join(formats)}, and the format is {options.format}; leave"
                " it out"
            )
    metric = options.metric or "exact_match"
    if options.format == "llava":
        images = options.images or Path(options.source).parent
        every = options.turns == "all"
        source = Path(options.source)
        done = converters.from_llava(source, images, options.out, metric, every)
    elif options.format == "vlmevalkit":
        done = converters.from_vlmevalkit(Path(options.source), options.out, metric)
    elif options.format == "photo":
        parts = options.images or FOLDER
        done = converters.from_photo(options.source, options.count or 1000, parts, options.out)
    else:
        done = converters.from_demo(options.source, options.count or 1000, options.out)
    print(done)


def _compare(
    options: argparse.Namespace,
    session: Session,
    record: dict[str, Any],
    others: dict[str, Dataset],
) -> None:
    studies = {name: session.study(dataset) for name, dataset in others.items()}
    first = next(iter(studies.values()))
    geometry = first.geometry
    book = ScheduleBook.from_folder(geometry, options.out, first.band_starts)
    budgets = sorted({s["budget"] for s in record["schedules"] if s["budget"]}, reverse=True)
    found = frontier.contenders(record, book, budgets, first.same_n_vision, first.has_cls)
    entries = list(found)
    asked = {entry.candidate for entry in entries if entry.candidate is not None}
    session.progress.plan({name: len(asked) * len(d) for name, d in others.items()})
    rows = frontier.compare(studies, entries, geometry)
    meta = frontier.meta(studies, geometry)
    meta |= {"command": options.command_line, "date": datetime.date.today().isoformat()}
    path = report_folder(options.out) / "frontier.json"
    records.write_json(path, {"meta": meta, "rows": rows})


def _load_heldout(splits: Splits, calibration: Dataset) -> dict[str, Dataset]:
    """The held-out data, none of whose images was used for the search."""
    names = [name for name, _ in splits]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"splits are named {', '.join(names)}; give each its own name")
    found = {name: Dataset.load(path) for name, path in splits}
    for dataset in found.values():
        check_disjoint(calibration, dataset)
    return found


def _backend(asked: BackendOptions, model: str, *sets: Dataset) -> Backend:
    images = max((data.most_images for data in sets), default=1)
    engine = EngineOptions(model, asked.max_tokens, asked.engine_args, images)
    return Backend(engine, asked.engines, asked.servers)


def _meta(options: argparse.Namespace, study: Study, data: Dataset) -> dict[str, Any]:
    asked: SearchOptions = options.asked
    return {
        "model": asked.model,
        "fingerprint": study.geometry.fingerprint,
        "n_vision": study.n_vision,
        "data": data.facts(),
        "family": asked.family,
        "seed": asked.seed,
        "objective": asked.objective,
        "tolerance": asked.tolerance,
        "versions": dict(study.versions),
        "command": options.command_line,
        "date": datetime.date.today().isoformat(),
    }


def _estimate(study: Study, plan: dict[str, int]) -> str:
    """Requests and time of the plan, at the speed of the unreduced run and a block at half work."""
    half = Candidate.of(p_sigmoid(study.geometry, 0.5), study.same_n_vision)
    study.evaluate("dry run", [unreduced(study.geometry), half], BLOCK)
    spent = study.costs.values()
    each = sum(cost.seconds for cost in spent) / sum(cost.requests for cost in spent)
    total = sum(plan.values())
    lines = [f"{stage}: about {requests} requests" for stage, requests in plan.items()]
    took = duration(total * each)
    return "\n".join([*lines, f"in all about {total} requests, {took} at this machine's speed"])
