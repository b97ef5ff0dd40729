"""The command line of the search: ``vtr search ...``."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vtr_vllm.errors import VTRError
from vtr_vllm.search import commands
from vtr_vllm.search.answer_metrics import METRICS
from vtr_vllm.search.pipeline import KINDS

_BUDGETS = "0.75,0.5,0.375,0.25,0.1875"
_STOPPED = 128  # exit codes of a stopped process: this and the signal's number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 1 with the reason on stderr's last line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.command_line = shlex.join(["vtr", "search", *arguments])
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


def _stop(number: int, _: object) -> NoReturn:
    """Leave through every ``finally``, so that the engines end before we do."""
    print("vtr search: stopped; the same command goes on from here", file=sys.stderr)
    raise SystemExit(_STOPPED + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        command.set_defaults(run=commands.search, kind=kind)
        _add_search(command)
    compare = kinds.add_parser("compare", help="held-out frontier of everything against everything")
    compare.set_defaults(run=commands.compare)
    _add_compare(compare)
    report = kinds.add_parser("report", help="HTML and PNG out of what a search left behind")
    report.set_defaults(run=commands.report)
    _add_out(report)
    convert = kinds.add_parser("convert", help="write calibration data from another format")
    convert.set_defaults(run=commands.convert)
    _add_convert(convert)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the schedule files"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    _add_backend(parser)
    add = parser.add_argument
    add("--model", required=True, help="model path or name, or `demo`")
    add("--data", type=Path, required=True, metavar="FILE", help="calibration data, JSON Lines")
    add("--heldout", type=Path, metavar="FILE", help="compare on this data when the search is done")
    add("--budgets", type=_budgets, default=_BUDGETS, help=f"mean keep rates (default: {_BUDGETS})")
    add("--objective", choices=("accuracy", "label-free"), default="accuracy")
    add(
        "--tolerance",
        type=_at_least_zero,
        default=0.005,
        help="what G-Search may lose: share of accuracy, or nats of divergence (default: 0.005)",
    )
    add("--inner", choices=("bisection", "bayes"), default="bisection", help="within G-Search")
    add(
        "--lambda",
        dest="weight",
        type=_at_least_zero,
        default=0.005,
        help="worth of dropping everything, for --inner bayes (default: 0.005)",
    )
    add("--trials", type=_count, default=32, help="per Bayesian optimisation (default: 32)")
    add("--items", type=_count, default=300, help="that curves are compared on (default: 300)")
    add("--seed", type=_seed, default=0, help="of the proposals (default: 0)")
    add(
        "--dry-run",
        action="store_true",
        help="check everything, measure the engine's speed, and say how long the search would take",
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--servers", type=_urls, default=(), metavar="URL,URL", help="running VTR servers to ask")
    add("--engines", type=_count, default=1, help="engines of our own, a process each (default: 1)")
    add("--max-tokens", type=_count, default=32, help="longest answer (default: 32)")
    add(
        "--engine-args",
        type=_json_object,
        default={},
        metavar="JSON",
        help="further arguments of vLLM's LLM class",
    )
    add("--journal", metavar="URL", help="SQLAlchemy URL (default: journal.sqlite in --out)")
    add("--events", type=Path, metavar="FILE", help="append progress as JSON Lines")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    _add_backend(parser)
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
    add("format", choices=("llava", "vlmevalkit", "demo"))
    add("source", help="LLaVA-style JSON, VLMEvalKit's TSV, or a split of the demo")
    add("out", type=Path, help="the JSON Lines file to write; images go beside it")
    add("--images", type=Path, help="llava: folder that image paths start from")
    add("--metric", choices=sorted(METRICS), default="exact_match", help="of open questions")
    add("--count", type=_count, default=1000, help="demo: number of items (default: 1000)")


def _budgets(text: str) -> tuple[float, ...]:
    budgets = tuple(dict.fromkeys(_number(part) for part in text.split(",")))
    if not all(0 < budget < 1 for budget in budgets):
        raise argparse.ArgumentTypeError(f"{text} has a budget outside (0, 1)")
    return budgets


def _at_least_zero(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is outside 0..1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from err


def _count(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _seed(text: str) -> int:
    value = _whole(text)
    if not 0 <= value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is outside 0..{(1 << 31) - 1}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from err


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    if not urls:  # none would mean an engine of our own
        raise argparse.ArgumentTypeError(f"{text!r} names no server")
    return urls


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text} is no JSON ({err})") from err
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return value


def _split(text: str) -> tuple[str, Path]:
    name, found, path = text.partition("=")
    if not found or not name or not path:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FILE")
    return name, Path(path)
