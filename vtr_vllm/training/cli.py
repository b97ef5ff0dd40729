"""The command line of training: ``vtr train ...``."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any, NoReturn

from vtr_vllm.command_line import Parser, count
from vtr_vllm.errors import CalibrationError, ConfigurationError, VTRError
from vtr_vllm.preflight import check_model
from vtr_vllm.search_options import add_flags, read_flags
from vtr_vllm.training.atp.options import AtpOptions
from vtr_vllm.training.registers.options import RegisterOptions
from vtr_vllm.training.stop import STOPPED, Stop
from vtr_vllm.whole_file import whole_file

if TYPE_CHECKING:
    from vtr_vllm.search.calibration import Dataset
    from vtr_vllm.training.atp.reference import Reference
    from vtr_vllm.training.atp.score import Outcome
    from vtr_vllm.training.llava import Llava
    from vtr_vllm.training.loop import Training

_TIMED = 5  # steps of a dry run, the first of which is not counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 1 with the reason on stderr's last line.

    A command line that cannot be read is status 2 and one line.
    """
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    before = signal.signal(signal.SIGTERM, _end)
    try:
        if options.model != "demo":
            check_model(options.model, (), os.environ)
        with _within_memory():
            status: int = options.run(options)
    except (VTRError, OSError) as err:
        print(f"vtr train: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("vtr train: stopped")
        return STOPPED + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)
    return status


def _end(number: int, _: object) -> NoReturn:
    """Leave through every ``finally``."""
    _say("vtr train: stopped")
    raise SystemExit(STOPPED + number)


@contextmanager
def _within_memory() -> Iterator[None]:
    """Raise ConfigurationError where the GPU's memory does not suffice."""
    try:
        yield
    except RuntimeError as err:
        import torch

        if not isinstance(err, torch.OutOfMemoryError):
            raise
        raise ConfigurationError(
            f"the GPU's memory does not suffice ({str(err).partition('. ')[0]}); lower --batch"
        ) from err


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags; like argparse, ends the process with status 2 and a message on a bad one."""
    parser = Parser(prog="vtr train", description="Train what reduces vision tokens, offline.")
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    for kind, model, told, left in (
        (
            "atp",
            AtpOptions,
            "ATP-LLaVA's modules: how many tokens stay, instance by instance",
            "modules",
        ),
        (
            "registers",
            RegisterOptions,
            "Victor's registers: learned tokens that stand for an image",
            "a checkpoint with registers, its schedules,",
        ),
    ):
        training = kinds.add_parser(kind, help=told, description=told)
        add_flags(training, model)
        training.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help=f"folder of {left} and state"
        )
        training.add_argument(
            "--dry-run",
            action="store_true",
            help="check everything, time a few steps, and say how long training would take",
        )
        training.set_defaults(run=_train, options=model)
    told = "how a model with trained modules answers other data, and on how many tokens"
    score = _of_modules(kinds.add_parser("score", help=told, description=told))
    score.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="write one line an item: its counts, and if right",
    )
    score.set_defaults(run=_score, options=None)
    told = "schedules of the counts that trained modules decide: what an engine can serve of them"
    distilled = _of_modules(kinds.add_parser("distil", help=told, description=told))
    distilled.add_argument(
        "--members", type=count, default=8, metavar="N", help="schedules to write (default: 8)"
    )
    distilled.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of schedules"
    )
    distilled.set_defaults(run=_distil, options=None)
    options = parser.parse_args(arguments)
    if options.options is not None:
        options.asked = read_flags(parser, options.options, options)
    return options


def _of_modules(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """With the flags of a command that runs trained modules over data."""
    command.add_argument("--model", required=True, metavar="TEXT", help="the model, as in training")
    for flag, metavar, what in (
        ("--atp", "DIR", "what the training wrote"),
        ("--data", "FILE", "questions with answers, JSON Lines"),
    ):
        command.add_argument(flag, type=Path, required=True, metavar=metavar, help=what)
    command.add_argument("--batch", type=count, default=16, metavar="N", help="(default: 16)")
    return command


def _train(options: argparse.Namespace) -> int:
    asked: AtpOptions | RegisterOptions = options.asked
    _check_out(asked.model, options.out)
    if asked.lora is not None:
        from vtr_vllm.training import lora

        lora.check()
    from vtr_vllm.search.calibration import Dataset
    from vtr_vllm.search.session import lock
    from vtr_vllm.training.llava import Llava

    data = Dataset.load(Path(asked.data))
    with nullcontext() if options.dry_run else lock(options.out):
        training = _training(asked, Llava.load(asked.model), data, options.out)
        _say(_plan(training))
        if options.dry_run:
            print(_timed(training))
            return 0
        return _run(training)


def _run(training: "Training[Any, Any]") -> int:
    from vtr_vllm.training.state import STATE

    if training.ended:
        state = training.folder / STATE
        _say(f"this training has come to its end; remove {state}, and it begins anew")
        print(json.dumps(training.scores))
        return 0
    if training.step:
        _say(f"goes on from step {training.step}")
    with Stop() as stop:
        ran = training.run(_say, stop)
    if not ran:
        _say(f"stopped at step {training.step}; the same command goes on from here")
        return STOPPED + int(stop.signal or 0)
    _say("scores what was held out, and writes")
    print(json.dumps(training.end().scores))
    return 0


def _check_out(model: str, out: Path) -> None:
    """Refuse to write over the model that is trained; raises ConfigurationError."""
    if Path(model).is_dir() and Path(model).resolve() == out.resolve():
        raise ConfigurationError(
            f"--out {out} is the folder of --model, whose files it would replace; give another"
        )


def _training(
    asked: AtpOptions | RegisterOptions, llava: "Llava", data: "Dataset", out: Path
) -> "Training[Any, Any]":
    from vtr_vllm.training.atp.train import AtpTraining
    from vtr_vllm.training.registers.train import RegisterTraining

    if isinstance(asked, RegisterOptions):
        return RegisterTraining(llava, data, asked, out)
    return AtpTraining(llava, data, asked, out)


def _plan(training: "Training[Any, Any]") -> str:
    asked = training.options
    rank = "" if asked.lora is None else f", with LoRA of rank {asked.lora}"
    return (
        f"{training.what}: {training.trained} weights{rank}; {len(training.training)} items to train"
        f" on, {len(training.heldout)} held out; {asked.steps} steps of {asked.batch}"
    )


def _timed(training: "Training[Any, Any]") -> str:
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


def _outcomes(options: argparse.Namespace, data: "Dataset") -> "tuple[Reference, list[Outcome]]":
    """The trained modules, and how they do on data."""
    from vtr_vllm.training.atp.reference import Reference
    from vtr_vllm.training.atp.score import outcomes

    trained = Reference.load(options.model, options.atp)
    modules, n_min = trained.artefact.modules, trained.artefact.facts.n_min
    examples = trained.llava.examples(data)
    return trained, list(outcomes(trained.llava, modules, examples, n_min, options.batch))


def _score(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vtr_vllm.search.calibration import Dataset
    from vtr_vllm.training.atp.score import summary

    data = Dataset.load(options.data)
    if not data.answered:
        raise CalibrationError(
            f"{data.path} has no answers, and they are what is scored; give every line answers and metric"
        )
    _, found = _outcomes(options, data)
    if options.items is not None:
        with whole_file(options.items) as file:
            file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in found)
    print(json.dumps({"data": data.facts(), **(summary(found) or {})}))
    return 0


def _distil(options: argparse.Namespace) -> int:
    from vtr_vllm.atp.facts import Facts
    from vtr_vllm.search.calibration import Dataset
    from vtr_vllm.training.atp.distil import distil

    Facts.load(options.atp).check_served()
    data = Dataset.load(options.data)
    trained, found = _outcomes(options, data)
    made = distil(
        [outcome.counts for outcome in found],
        options.members,
        trained.artefact.modules.layers,
        trained.llava.geometry,
        trained.llava.tokens,
        {"target": trained.artefact.facts.values["target"], "data": data.facts()},
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for schedule in made:
        schedule.save(options.out / f"{schedule.name}.json")
        print(f"{schedule.name}: mean keep {schedule.mean_keep:.3f}")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
