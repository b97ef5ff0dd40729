"""What a rank rule or a merge costs beside another: ``python -m benchmarks.rules --help``.

One engine, the same counts, one cut, and no picture twice: the tower would not see it again. Each rule is measured in turn with the one that it
stands beside, strictly one after the other; which of the two goes first flips from pair to pair.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm, log_folder
from benchmarks.one_engine import add_engine_options, of_one_engine
from benchmarks.record import say, write
from benchmarks.report import measured
from benchmarks.shapes import NAMES, Shape
from vtr_vllm.schedules import RankRule, Schedule, explicit

RULES = (
    *("last+nearest", "last+scored", "last+recycled", "last+neighbours", "last+tail"),
    *("last-prior", "last-norope", "instruction", "saliency", "diverse", "orthogonal"),
)

SETTINGS = ("shape", "beside", "layer", "rate", "rounds", "eager", "threads", "dtype")
"""Options that change what is measured."""


def one_cut(shape: Shape, layer: int, rate: float, rule: str) -> Schedule:
    """All tokens before ``layer``, a share of ``rate`` from there on."""
    geometry = shape.geometry
    keep = (1.0,) * layer + (rate,) * (geometry.layers - layer)
    return explicit(geometry, keep, [RankRule.parse(rule)])


def pairs(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every pair that was measured, with both wall times in seconds."""
    found: list[dict[str, Any]] = []
    pictures = itertools.count()
    with (
        log_folder("rules") as logs,
        Arm("vtr", shape, options.eager, logs / "vtr.log", options.threads) as arm,
    ):

        def wall(rule: str, requests: int) -> float:
            first, *_ = itertools.islice(pictures, requests)
            spec = {"first": first, "requests": requests, "concurrency": requests}
            spec |= {"output_tokens": 1, "render_first": True}
            wire = one_cut(shape, options.layer, options.rate, rule).wire()
            return float(arm.measure({**spec, "wire": wire})["wall_s"])

        for rule in (options.beside, *options.rules):  # each meets its kernels once
            wall(rule, 2)
        for number in range(options.rounds):
            for concurrency in options.concurrency:
                for rule in options.rules:
                    order = [options.beside, rule][:: 1 if number % 2 else -1]
                    times = {name: wall(name, concurrency) for name in order}
                    own, other = times[rule], times[options.beside]
                    found.append({"rule": rule, "concurrency": concurrency, "seconds": own})
                    found[-1]["beside"] = other
                    say(f"round {number + 1} c={concurrency} {rule}: {own / other:.3f}")
    return found


def table(found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Median, minimum and maximum of each rule's time over that of the rule beside it."""
    ratios: dict[tuple[str, int], list[float]] = defaultdict(list)
    for pair in found:
        ratios[pair["rule"], pair["concurrency"]].append(pair["seconds"] / pair["beside"])
    columns = options.concurrency
    lines = [
        "| rule | " + " | ".join(f"{c} at once" for c in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for rule in options.rules:
        cells = [
            f"{statistics.median(own):.3f} ({min(own):.3f} to {max(own):.3f})"
            for own in (ratios[rule, c] for c in columns)
        ]
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=NAMES, default="llava")
    add("--rules", nargs="+", default=list(RULES))
    add("--beside", default="last", help="what each rule is measured with")
    add("--layer", type=int, default=2, help="of the cut")
    add("--rate", type=float, default=0.25, help="kept from there on")
    add_engine_options(parser)
    add("--out", type=Path, default=Path("benchmarks/results/rules.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    options = parse(arguments)
    meta, found = of_one_engine("rules", options, pairs)
    write(options.out, {"meta": meta, "pairs": found})
    print(f"{measured(meta, *SETTINGS)}\n\n{table(found, options)}")


if __name__ == "__main__":
    main()
