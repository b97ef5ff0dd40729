"""How soon Bayesian optimisation beats random search: ``python -m benchmarks.bayes --help``.

At each budget, points drawn at random from a P-Sigmoid family's parameters are evaluated. Then the
optimisation of the search runs from several seeds, without a first guess, until it reaches the best
of the random points. Of many points the best is partly luck, one item's answer; so it is also
counted when a search comes within one item of it.
"""

import argparse
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rankings.samples import SUBJECTS
from benchmarks.record import measured_with, save
from benchmarks.study import open_study, questions
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.proposer import Dimension, Point
from vtr_vllm.search.sigmoid_search import PARALLEL, Curves, search_sigmoid
from vtr_vllm.search.study import Study

REACHED = 1e-9
"""How far below the best random point a value still counts as reaching it: rounding."""

STRETCH = 5 * PARALLEL
"""Trials after which the optimisation is asked whether it is there; whole rounds, so that going
on gives the trials that a longer run would have had."""


def families(layers: int) -> Mapping[str, Curves]:
    """What is searched: the paper's family, and the same with a question-blind first cut."""
    starts = range(2, layers)
    return {"k, alpha": Curves(starts, {}, False), "k, alpha, first": Curves(starts, {}, True)}


def random_points(dimensions: Sequence[Dimension], count: int, seed: int) -> list[Point]:
    """Points uniform in the space that is searched, k in its logarithm."""
    draw = random.Random(seed)

    def coordinate(d: Dimension) -> float:
        if d.log:
            return math.exp(draw.uniform(math.log(d.low), math.log(d.high)))
        return draw.uniform(d.low, d.high)

    return [tuple(coordinate(d) for d in dimensions) for _ in range(count)]


def values_of(study: Study, family: Curves, budget: float, points: Sequence[Point]) -> list[float]:
    """The value of each point."""
    schedules = [family.schedule(study.geometry, budget, point) for point in points]
    candidates = [Candidate.of(schedule, study.same_n_vision) for schedule in schedules]
    return [found.value for found in study.evaluate("random", candidates)]


def search_until(
    study: Study, family: Curves, budget: float, target: float, limit: int, seed: int
) -> list[float]:
    """The values of the trials, in their order, until one is ``target`` or ``limit`` are done."""
    values: list[float] = []
    for trials in range(STRETCH, limit + 1, STRETCH):
        found = search_sigmoid(study, "bayes", family, budget, [], trials, None, seed)
        values = [trial.value for trial in found]
        if max(values) >= target - REACHED:
            break
    return values


def first_at(values: Sequence[float], target: float) -> int | None:
    """Evaluations up to and with the first of value ``target``; None if there is none."""
    return next((n for n, value in enumerate(values, 1) if value >= target - REACHED), None)


def expected_draws(values: Sequence[float], target: float) -> float:
    """Mean position of the first of value ``target`` over all orders of the random points."""
    good = sum(value >= target - REACHED for value in values)
    return (len(values) + 1) / (good + 1)


def measure(
    study: Study, name: str, budget: float, points: int, seeds: int, limit: int
) -> dict[str, Any]:
    """One family at one budget, as a row of the results."""
    layers = study.geometry.layers
    family = families(layers)[name]
    values = values_of(study, family, budget, random_points(family.dimensions(layers), points, 0))
    best = max(values)
    near = best - 1 / len(study.dataset)
    runs = [search_until(study, family, budget, best, limit, seed) for seed in range(seeds)]
    return {
        "family": name,
        "budget": budget,
        "best": best,
        "median": median(values),
        "reached": [first_at(run, best) for run in runs],
        "near": [first_at(run, near) for run in runs],
        "near_random": expected_draws(values, near),
        "searched_best": [max(run) for run in runs],
    }


def median_count(reached: Sequence[int | None]) -> float:
    """Median over seeds, infinite where half of them or more never were there."""
    return median(math.inf if count is None else count for count in reached)


def render(results: Mapping[str, Any]) -> str:
    """Return the table as markdown."""
    meta = results["meta"]
    over = f">{meta['limit']}"

    def shown(count: float | None) -> str:
        return over if count is None or math.isinf(count) else f"{count:g}"

    lines = [
        f"Measured {meta['date']} on {meta['cpu']}, commit {meta['commit']}: {meta['items']} items,"
        f" {meta['points']} random points, at most {meta['limit']} evaluations a seed.",
        "",
        "| family | budget | random: median value | random: best value"
        " | evaluations to reach it, by seed | median"
        " | to come within one item of it: random, mean | optimised, median |",
        f"|{'---|' * 8}",
    ]
    for row in results["rows"]:
        seeds = ", ".join(shown(count) for count in row["reached"])
        lines.append(
            f"| {row['family']} | {row['budget']} | {row['median']:.4f} | {row['best']:.4f}"
            f" | {seeds} | {shown(median_count(row['reached']))}"
            f" | {row['near_random']:.1f} | {shown(median_count(row['near']))} |"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bayes", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="data and journal; goes on from what it has")
    add("--items", type=int, default=100)
    add("--engines", type=int, default=2)
    add("--budget", type=float, action="append", help="default: 0.375 and 0.25")
    add("--points", type=int, default=200, help="random points")
    add("--seeds", type=int, default=10)
    add("--limit", type=int, default=60, help=f"evaluations a seed, a multiple of {STRETCH}")
    add("--out", type=Path, default=Path("benchmarks/results/bayes.json"))
    options = parser.parse_args(arguments)
    if options.limit < STRETCH or options.limit % STRETCH:
        parser.error(f"--limit is {options.limit}; it must be a multiple of {STRETCH}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, write JSON, print the table."""
    options = parse(arguments)
    asked = {name: getattr(options, name) for name in ("items", "points", "seeds", "limit")}
    demo = SUBJECTS["demo"]
    data = questions(demo, "calibration", options.items, options.folder)
    with open_study(demo, data, options.folder, options.engines) as study:
        rows = [
            measure(study, name, budget, options.points, options.seeds, options.limit)
            for name in families(study.geometry.layers)
            for budget in options.budget or (0.375, 0.25)
        ]
    results = {"meta": {**measured_with(options), **asked}, "rows": rows}
    save(options.out, results, render(results))


if __name__ == "__main__":
    main()
