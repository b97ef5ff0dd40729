"""The command line of the search: ``vtr search ...``."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vtr_vllm.command_line import Parser, count, refuse
from vtr_vllm.errors import VTRError
from vtr_vllm.own_models import OWN_MODELS
from vtr_vllm.preflight import check_model
from vtr_vllm.search import commands
from vtr_vllm.search.answer_metrics import METRICS
from vtr_vllm.search_options import (
    KINDS,
    BackendOptions,
    FamilyOptions,
    SearchOptions,
    add_flags,
    read_flags,
)

_STOPPED = 128  # exit codes of a stopped process: this and the signal's number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 1 with the reason on stderr's last line.

    What cannot begin, for its flags or its model, is status 2 and one line.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(arguments)
    _check(options)
    signal.signal(signal.SIGTERM, _stop)
    try:
        options.run(options)
    except (VTRError, OSError) as err:
        print(f"vtr search: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vtr search: stopped; the same command goes on from here", file=sys.stderr)
        return _STOPPED + signal.SIGINT
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags; like argparse, ends the process with status 2 and a message on a bad one.

    ``asked`` has what the model of the command says, where it has one.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.model_of is not None:
        options.asked = read_flags(parser, options.model_of, options)
    options.command_line = shlex.join(["vtr", "search", *arguments])
    return options


def _check(options: argparse.Namespace) -> None:
    """Refuse engines of our own for a model that is not there, before one of them is started."""
    asked = options.asked if options.model_of in (SearchOptions, FamilyOptions) else None
    if asked is None or asked.servers:
        return
    own = OWN_MODELS.get(asked.model)
    try:
        if own is not None:
            own.check()
        else:
            check_model(asked.model, (), os.environ)
    except VTRError as err:
        refuse("vtr search", err)


def _stop(number: int, _: object) -> NoReturn:
    """Leave through every ``finally``, so that the engines end before we do."""
    print("vtr search: stopped; the same command goes on from here", file=sys.stderr)
    raise SystemExit(_STOPPED + number)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vtr search",
        description="Find schedules for a model, offline. `vtr search serve` runs it as a service.",
    )
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    helps = {
        "g-search": "the fewest vision tokens per layer that lose no quality",
        "p-sigmoid": "the best quality at each budget, with the paper's family of curves",
        "all": "both, and beyond the paper: rank rules, a question-blind cut, descent on counts",
    }
    for kind in KINDS:
        command = kinds.add_parser(kind, help=helps[kind], description=helps[kind])
        command.set_defaults(run=commands.search, kind=kind, model_of=SearchOptions)
        _add_search(command)
    family = kinds.add_parser(
        "family", help="schedules that are searched together, and what chooses one for each prompt"
    )
    family.set_defaults(run=commands.family, model_of=FamilyOptions)
    _add_family(family)
    compare = kinds.add_parser("compare", help="held-out frontier of everything against everything")
    compare.set_defaults(run=commands.compare, model_of=BackendOptions)
    _add_compare(compare)
    report = kinds.add_parser("report", help="HTML and PNG out of what a search left behind")
    report.set_defaults(run=commands.report, model_of=None)
    _add_out(report)
    convert = kinds.add_parser("convert", help="write calibration data from another format")
    convert.set_defaults(run=commands.convert, model_of=None)
    _add_convert(convert)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the schedule files"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    add_flags(parser, SearchOptions, without=("kind",))
    _add_run(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, measure the engine's speed, and say how long the search would take",
    )


def _add_family(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    add_flags(parser, FamilyOptions)
    _add_run(parser)
    parser.add_argument(
        "--split",
        dest="splits",
        type=_split,
        action="append",
        metavar="NAME=FILE",
        help="held-out data to say what the family is worth; give it again for more splits",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, and say how much there is to run"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--journal", metavar="URL", help="SQLAlchemy URL (default: journal.sqlite in --out)")
    add("--events", type=Path, metavar="FILE", help="append progress as JSON Lines")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    add_flags(parser, BackendOptions)
    _add_run(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="the calibration data of the search (default: where the search found it)",
    )
    parser.add_argument(
        "--split",
        dest="splits",
        type=_split,
        action="append",
        required=True,
        metavar="NAME=FILE",
        help="held-out data; give it again for more splits",
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("format", choices=("llava", "vlmevalkit", "demo", "photo"))
    add(
        "source",
        help="LLaVA-style JSON, VLMEvalKit's TSV, or a split of the demo or of the photo model",
    )
    add("out", type=Path, help="the JSON Lines file to write; images go beside it")
    images = "llava: folder that image paths start from; photo: of its parts (build/photo-parts)"
    add("--images", type=Path, help=images)
    add("--turns", choices=("first", "all"), help="llava: of a conversation (default: first)")
    metric = "llava, vlmevalkit: of open questions (default: exact_match)"
    add("--metric", choices=sorted(METRICS), help=metric)
    add("--count", type=count, help="demo, photo: items, or conversations (default: 1000)")


def _split(text: str) -> tuple[str, Path]:
    name, found, path = text.partition("=")
    if not found or not name or not path:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FILE")
    return name, Path(path)
