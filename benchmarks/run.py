"""Stock vLLM and VTR side by side: ``python -m benchmarks.run --help``.

Both engines stay alive through a shape's run and are measured strictly in turn on the same
prompts; every VTR number has a stock number taken just before or after it. Which of the two goes
first flips from pair to pair, and for each cell of the tables from round to round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm, in_turn, log_folder
from benchmarks.cost import predict
from benchmarks.record import measured_with, save, say, write
from benchmarks.report import render
from benchmarks.shapes import NAMES, ON_A_CPU, Shape, UnsupportedDevice, make_shape
from vtr_vllm.errors import InvalidBudget, UnknownSchedule
from vtr_vllm.schedules import ModelGeometry, Schedule, ScheduleBook, full

BUDGETS = (1.0, 0.5, 0.25, 0.125)
PREFILL_BUDGETS = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Scenario:
    """A load: so many requests, at most ``concurrency`` of them at once."""

    name: str
    concurrency: int
    requests: int
    output_tokens: int
    budgets: tuple[float, ...]


def scenarios(shape: Shape, options: argparse.Namespace) -> list[Scenario]:
    """Return what a round measures, the prefill-bound loads first."""
    found = []
    for name, concurrencies, tokens, budgets in (
        ("prefill", (1, 8), 1, PREFILL_BUDGETS),
        ("serve", (1, 4, 16), shape.output_tokens, BUDGETS),
    ):
        for concurrency in concurrencies:
            requests = max(2, concurrency) if options.quick else max(4, options.waves * concurrency)
            wanted = options.concurrency in (None, concurrency)
            if wanted and options.scenario in (None, name):
                found.append(Scenario(name, concurrency, requests, tokens, budgets))
    return found


class Results:
    """The JSON file; written anew after every pair, so that a broken run leaves what it has."""

    def __init__(self, path: Path, meta: dict[str, object]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"meta": meta, "shapes": {}, "pairs": []}

    def add(self, pair: dict[str, object]) -> None:
        """Append one pair and write the file."""
        self.data["pairs"].append(pair)
        write(self.path, self.data)


def schedules(geometry: ModelGeometry, form: str | None) -> dict[float, Schedule]:
    """Return what each budget runs; budgets that ``form`` cannot reach are left out.

    Raises UnknownSchedule for a form that there is not.
    """
    book, found = ScheduleBook(geometry), {}
    for budget in BUDGETS:
        if form is None or budget == 1.0:
            found[budget] = book.for_budget(budget, reuse=False).schedule
            continue
        with contextlib.suppress(InvalidBudget):
            found[budget] = book.by_name(f"{form}-{budget}")
    return found


class Session:
    """One shape's run: two arms and a supply of images that no request has used before."""

    def __init__(
        self, shape: Shape, stock: Arm, vtr: Arm, schedules: Mapping[float, Schedule]
    ) -> None:
        """``schedules`` is what requests for each budget run."""
        self.shape, self.stock, self.vtr = shape, stock, vtr
        self.schedules = schedules
        self.next_image = 0

    def pair(
        self, scenario: Scenario, budget: float, number: int = 0, place: int = 0
    ) -> dict[str, Any]:
        """Measure ``scenario`` in both arms on the same images, at a place of round ``number``."""
        schedule = self.schedules[budget]
        spec = {
            "first": self.next_image,
            "requests": scenario.requests,
            "concurrency": scenario.concurrency,
            "output_tokens": scenario.output_tokens,
        }
        self.next_image += scenario.requests
        order = [(self.stock, None), (self.vtr, schedule.wire())]
        results = {
            arm.name: arm.measure({**spec, "wire": wire})
            for arm, wire in in_turn(order, number, place)
        }
        same = [a == b for a, b in zip(*(r.pop("tokens") for r in results.values()), strict=True)]
        return {
            "shape": self.shape.name,
            "scenario": scenario.name,
            "concurrency": scenario.concurrency,
            "output_tokens": scenario.output_tokens,
            "budget": budget,
            "schedule": schedule.name,
            "same_tokens": sum(same) / len(same),
            **results,
        }

    def warm_up(self) -> int:
        """Let both engines meet every budget once; return a prompt's text tokens."""
        for budget in self.schedules:
            found = self.pair(Scenario("warm-up", 2, 2, 2, BUDGETS), budget)
        return int(found["stock"]["prompt_tokens"]) - self.shape.vision_tokens

    def facts(self, n_text: int) -> dict[str, object]:
        """Return sizes, settings and what FLOPs predict, for the results file."""
        predictions = {b: predict(self.shape, s, n_text) for b, s in self.schedules.items()}
        one = predict(self.shape, full(self.shape.geometry), n_text)
        return {
            "geometry": self.shape.geometry.to_dict(),
            "vocabulary": self.shape.config["text_config"]["vocab_size"],
            "vision_tokens": self.shape.vision_tokens,
            "text_tokens": n_text,
            "dtype": self.shape.dtype,
            "weights": self.shape.load_format,
            "tower_share": one.tower_share,
            "flops": {str(b): asdict(p) for b, p in predictions.items()},
            "predicted": {str(b): p.ratio for b, p in predictions.items()},
            "predicted_decoder": {str(b): p.decoder_ratio for b, p in predictions.items()},
            "arms": {arm.name: arm.info for arm in (self.stock, self.vtr)},
        }


def run_shape(
    shape: Shape,
    options: argparse.Namespace,
    results: Results,
    made: Mapping[float, Schedule],
) -> None:
    """Measure one shape for all rounds, at the budgets that ``made`` has a schedule for."""
    for budget in sorted(set(BUDGETS) - set(made)):
        say(f"{shape.name}: {options.form} cannot reach {budget}: left out")
    settings = shape.engine_args(options.eager)
    settings.pop("model")
    with (
        log_folder("bench") as logs,
        Arm("stock", shape, options.eager, logs / "stock.log", options.threads) as stock,
        Arm("vtr", shape, options.eager, logs / "vtr.log", options.threads) as vtr,
    ):
        session = Session(shape, stock, vtr, made)
        facts = session.facts(session.warm_up())
        results.data["shapes"][shape.name] = {**facts, "settings": settings}
        say(f"{shape.name}: tower's share of prefill FLOPs {facts['tower_share']:.3f}")
        check_tower(shape, float(str(facts["tower_share"])))
        cells = [(s, b) for s in scenarios(shape, options) for b in s.budgets if b in made]
        end = time.monotonic() + 60 * options.minutes
        for number in range(1, options.rounds + 1):
            for place, (scenario, budget) in enumerate(cells):
                if time.monotonic() > end:
                    say(f"{shape.name}: {options.minutes} minutes are over in round {number}")
                    return
                pair = session.pair(scenario, budget, number, place)
                results.add({"round": number, **pair})
                say(progress(number, pair))


def check_tower(shape: Shape, share: float) -> None:
    """Raise ValueError unless a dummy shape's tower weighs about what its model's does."""
    if shape.tower_share is not None and abs(share - shape.tower_share) > 0.01:
        raise ValueError(f"tower share {share:.3f}, the model has {shape.tower_share}")


def progress(number: int, pair: dict[str, Any]) -> str:
    """Return one line about a pair."""
    stock, vtr = pair["stock"], pair["vtr"]
    return (
        f"round {number} {pair['shape']} {pair['scenario']} c={pair['concurrency']}"
        f" b={pair['budget']}: stock {stock['wall_s']:.2f} s, vtr {vtr['wall_s']:.2f} s,"
        f" ratio {stock['wall_s'] / vtr['wall_s']:.2f}, others on"
        f" {max(stock['foreign_cores'], vtr['foreign_cores']):.2f} cores"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--shape", choices=[*NAMES, "all"], action="append")
    parser.add_argument("--quick", action="store_true", help="fewer requests, one round")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    parser.add_argument("--minutes", type=float, default=120, help="stop a shape after so long")
    parser.add_argument("--threads", type=int, help="CPU threads of each engine; default all cores")
    parser.add_argument("--concurrency", type=int, help="only this many in flight")
    parser.add_argument("--waves", type=int, default=2, help="requests per place in flight")
    parser.add_argument("--scenario", choices=["prefill", "serve"], help="default both")
    parser.add_argument("--dtype", help="default bfloat16; float32 on a CPU without AVX-512 BF16")
    parser.add_argument("--checkpoint", type=Path, help="demo checkpoint instead of the packaged")
    parser.add_argument("--form", help="schedule form such as fastv, instead of the default")
    parser.add_argument(
        "--eager",
        action=argparse.BooleanOptionalAction,
        default=not torch.cuda.is_available(),
        help="no torch.compile in either arm; the default on a CPU",
    )
    parser.add_argument("--table", type=Path, help="print the tables of a results file and end")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 5)
    named = options.shape or ["all"]
    options.shapes = named
    if "all" in named:
        options.shapes = NAMES if torch.cuda.is_available() else ON_A_CPU
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for and print the tables."""
    options = parse(arguments)
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return
    with tempfile.TemporaryDirectory(prefix="vtr-bench-models-") as scratch:
        try:
            shapes = [
                make_shape(
                    name,
                    Path(scratch),
                    options.checkpoint,
                    torch.cuda.is_available(),
                    options.dtype,
                )
                for name in options.shapes
            ]
            made = [schedules(shape.geometry, options.form) for shape in shapes]
        except (UnsupportedDevice, FileNotFoundError, UnknownSchedule) as error:
            sys.exit(f"benchmarks.run: {error}")
        results = Results(options.out, {**measured_with(options), "rounds": options.rounds})
        results.data["meta"]["quick"] = options.quick
        for shape, found in zip(shapes, made, strict=True):
            run_shape(shape, options, results, found)
    say(f"results are in {options.out}")
    save(options.out, results.data, render(results.data))


if __name__ == "__main__":
    main()
