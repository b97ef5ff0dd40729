"""The command line of training: ``vtr train ...``."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from vtr_vllm.atp.options import AtpOptions
from vtr_vllm.command_line import Parser
from vtr_vllm.errors import VTRError
from vtr_vllm.preflight import check_model
from vtr_vllm.schedules.whole_file import whole_file
from vtr_vllm.search_options import add_flags, read_flags

_STOPPED = 128  # exit codes of a stopped process: this and the signal's number
_TIMED = 5  # steps of a dry run, the first of which is not counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 1 with the reason on stderr's last line.

    A command line that cannot be read is status 2 and one line.
    """
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    stop = _Stop()
    try:
        if options.model != "demo":
            check_model(options.model, (), os.environ)
        status: int = options.run(options, stop)
    except (VTRError, OSError) as err:
        print(f"vtr train: {err}", file=sys.stderr)
        return 1
    finally:
        stop.end()
    return status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags; like argparse, ends the process with status 2 and a message on a bad one."""
    parser = Parser(prog="vtr train", description="Train what reduces vision tokens, offline.")
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    told = "ATP-LLaVA's modules: how many tokens stay, decided instance by instance"
    atp = kinds.add_parser("atp", help=told, description=told)
    add_flags(atp, AtpOptions)
    atp.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of modules and checkpoints"
    )
    atp.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, time a few steps, and say how long training would take",
    )
    atp.set_defaults(run=_train, options=AtpOptions)
    told = "how a model with trained modules answers other data, and on how many tokens"
    score = kinds.add_parser("score", help=told, description=told)
    score.add_argument("--model", required=True, metavar="TEXT", help="the model, as in training")
    for flag, metavar, what in (
        ("--atp", "DIR", "what the training wrote"),
        ("--data", "FILE", "questions with answers, JSON Lines"),
    ):
        score.add_argument(flag, type=Path, required=True, metavar=metavar, help=what)
    score.add_argument("--batch", type=_count, default=16, metavar="N", help="(default: 16)")
    score.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="write one line an item: its counts, and if right",
    )
    score.set_defaults(run=_score, options=None)
    options = parser.parse_args(arguments)
    if options.options is not None:
        options.asked = read_flags(parser, options.options, options)
    return options


class _Stop:
    """The first SIGTERM or SIGINT asks for an end behind the step; the next one ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def __call__(self) -> bool:
        return self.signal is not None

    def _ask(self, number: int, _: object) -> None:
        self.signal = number
        self.end()

    def end(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _train(options: argparse.Namespace, stop: _Stop) -> int:
    asked: AtpOptions = options.asked
    if asked.lora is not None:
        from vtr_vllm.atp import lora

        lora.check()
    from vtr_vllm.atp.llava import Llava
    from vtr_vllm.atp.train import Training
    from vtr_vllm.search.calibration import Dataset

    data = Dataset.load(Path(asked.data))
    training = Training(Llava.load(asked.model), data, asked, options.out)
    _say(_plan(training))
    if options.dry_run:
        print(_timed(training))
        return 0
    if training.step:
        _say(f"goes on from step {training.step}")
    trained = training.run(_say, stop)
    if trained is None:
        _say(f"stopped at step {training.step}; the same command goes on from here")
        return _STOPPED + int(stop.signal or 0)
    print(json.dumps(trained.facts["scores"]))
    return 0


def _plan(training: Any) -> str:
    asked: AtpOptions = training.options
    trained = sum(weight.numel() for weight in training.modules.parameters())
    rank = "frozen" if asked.lora is None else f"with LoRA of rank {asked.lora}"
    return (
        f"modules of {trained} weights before layers {', '.join(map(str, training.modules.layers))} of"
        f" {training.depth}, the model {rank}; {len(training.training)} items to train on,"
        f" {len(training.heldout)} held out; {asked.steps} steps of {asked.batch}, target"
        f" {asked.target:g}"
    )


def _timed(training: Any) -> str:
    """What a few steps take; they are not kept."""
    training.take_step()
    wall, cpu = monotonic(), process_time()
    for _ in range(_TIMED - 1):
        training.take_step()
    wall, cpu = (monotonic() - wall) / (_TIMED - 1), (process_time() - cpu) / (_TIMED - 1)
    whole = training.options.steps * wall / 60
    return (
        f"a step takes {wall:.2f} s, {cpu:.2f} s of CPU; all {training.options.steps} take {whole:.0f}"
        " minutes"
    )


def _score(options: argparse.Namespace, _: _Stop) -> int:
    from dataclasses import asdict

    from vtr_vllm.atp.reference import Reference
    from vtr_vllm.atp.score import outcomes, summary
    from vtr_vllm.search.calibration import Dataset

    data = Dataset.load(options.data)
    trained = Reference.load(options.model, options.atp)
    modules, n_min = trained.artefact.modules, trained.artefact.n_min
    found = list(
        outcomes(trained.llava, modules, trained.llava.examples(data), n_min, options.batch)
    )
    if options.items is not None:
        with whole_file(options.items) as file:
            file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in found)
    print(json.dumps({"data": data.facts(), **(summary(found) or {})}))
    return 0


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from err
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
