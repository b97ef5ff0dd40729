"""Does G-Search find the optimum: ``python -m benchmarks.optimality --help``.

On the demo model with few stages and coarse counts every curve that never rises can be evaluated.
The cheapest within the tolerance is the optimum that G-Search claims under the paper's assumption,
that the tokens a layer needs are among those that the layer before needs (arXiv 2412.00556).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

from benchmarks.rankings.samples import SUBJECTS
from benchmarks.record import measured_with, save
from benchmarks.study import open_study, questions
from vtr_vllm.schedules import RankRule
from vtr_vllm.search import g_search
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.g_search import GSearch
from vtr_vllm.search.study import Study

Counts = tuple[int, ...]

STARTS = (2, 4, 6, 8)


def never_rising(levels: Sequence[int], stages: int) -> list[Counts]:
    """Every way to give the stages counts out of ``levels`` that never rise."""
    return list(combinations_with_replacement(sorted(levels, reverse=True), stages))


def cost(counts: Counts, starts: Sequence[int], layers: int) -> int:
    """Vision tokens of a prompt, summed over the layers from the first stage on."""
    sizes = [end - start for start, end in pairwise([*starts, layers])]
    return sum(count * size for count, size in zip(counts, sizes, strict=True))


def candidate(counts: Counts, starts: Sequence[int], layers: int, n_vision: int) -> Candidate:
    """The stages' counts on all layers, ranked by ``last`` as G-Search has it by itself."""
    by_layer = [n_vision] * starts[0]
    for count, (start, end) in zip(counts, pairwise([*starts, layers]), strict=True):
        by_layer += [count] * (end - start)
    return Candidate.from_counts(by_layer, [RankRule.parse("last")] * layers, n_vision)


def evaluate_all(
    study: Study, starts: Sequence[int], grain: int, floor: float
) -> dict[Counts, Evaluation]:
    """Every curve, each given up once it cannot reach ``floor``."""
    layers, n = study.geometry.layers, study.n_vision
    vectors = never_rising(sorted({*range(0, n + 1, grain), n}), len(starts))  # as G-Search has it
    candidates = [candidate(counts, starts, layers, n) for counts in vectors]
    scored = study.evaluate("exhaustive", candidates, floor=floor)
    return dict(zip(vectors, scored, strict=True))


def passing(scored: Mapping[Counts, Evaluation], floor: float) -> set[Counts]:
    """The curves within the tolerance."""
    return {c for c, found in scored.items() if found.complete and found.value >= floor}


def reversals(vectors: Sequence[Counts], good: set[Counts]) -> Iterator[tuple[Counts, Counts]]:
    """Pairs in which more tokens at some stages, and nowhere fewer, turn a pass into a failure.

    There are none where the value is monotone in the counts, which bisection relies on.
    """
    for fewer in good:
        for more in vectors:
            if more not in good and all(a >= b for a, b in zip(more, fewer, strict=True)):
                yield fewer, more


def joint_minimum(good: set[Counts]) -> Counts:
    """The least count of each stage among the curves that pass; nothing where none does.

    Where every layer needs its own number of tokens whatever the others keep, as the paper's
    assumption has it, this curve passes as well, and is the optimum.
    """
    return tuple(min(counts) for counts in zip(*good, strict=True))


def measure(study: Study, starts: Sequence[int], grain: int, tolerance: float) -> dict[str, Any]:
    """G-Search, exhaustive search, and what they say of each other."""
    layers = study.geometry.layers
    floor = study.unreduced().value - tolerance
    settings = GSearch(starts, {}, tolerance, grain)
    _, steps = g_search.search(study, settings, "g-search")
    greedy = tuple(step.count for step in steps)
    scored = evaluate_all(study, starts, grain, floor)
    good = passing(scored, floor)
    rows = [
        {
            "counts": counts,
            "cost": cost(counts, starts, layers),
            "value": found.value,
            "accuracy": found.accuracy,
            "items": len(found.outcomes),
            "passes": counts in good,
        }
        for counts, found in scored.items()
    ]
    turned = sorted(reversals(list(scored), good))
    return {
        "unreduced": study.unreduced().value,
        "floor": floor,
        "greedy": greedy,
        "greedy_cost": cost(greedy, starts, layers),
        "greedy_evaluations": sum(step.evaluations for step in steps),
        "joint_minimum": joint_minimum(good),
        "reversals": turned,
        "rows": sorted(rows, key=lambda row: (row["cost"], -row["value"])),
    }


def render(results: Mapping[str, Any]) -> str:
    """Return the tables as markdown: G-Search, and every curve up to its cost that passes."""
    meta, found = results["meta"], results["found"]
    good = [row for row in found["rows"] if row["passes"]]
    greedy = tuple(found["greedy"])
    lines = [
        f"Measured {meta['date']} on {meta['cpu']}, commit {meta['commit']}: {meta['items']} items,"
        f" stages from layers {', '.join(map(str, meta['starts']))}, counts in multiples of"
        f" {meta['grain']}, value {found['unreduced']:.4f} unreduced, tolerance"
        f" {meta['tolerance']}.",
        "",
        summary(found, good),
        "",
        "| counts of the stages | cost | value | accuracy | |",
        f"|{'---|' * 5}",
    ]
    for row in good:
        counts = tuple(row["counts"])
        if row["cost"] > found["greedy_cost"]:
            break
        who = "G-Search" if counts == greedy else ""
        lines.append(
            f"| {counts} | {row['cost']} | {row['value']:.4f} | {row['accuracy']:.4f} | {who} |"
        )
    return "\n".join(lines)


def summary(found: Mapping[str, Any], good: Sequence[Mapping[str, Any]]) -> str:
    """Return what the curves within the tolerance, cheapest first, say of G-Search's."""
    within = f"{len(good)} of {len(found['rows'])} curves are within the tolerance."
    own, after = found["greedy_cost"], f"after {found['greedy_evaluations']} evaluations"
    if not good:
        return f"{within} G-Search's cost is {own}, {after}."
    least, joint = good[0]["cost"], tuple(found["joint_minimum"])
    verdict = "equals" if own == least else "is above" if own > least else "is below"
    passes = joint in {tuple(row["counts"]) for row in good}
    return (
        f"{within} G-Search's cost {own} {verdict} the least of them, {least}, {after}. The least"
        f" count of each stage among them is {joint}, a curve that"
        f" {'passes' if passes else 'does not pass'}; {len(found['reversals'])} pairs are turned from"
        " passing to failing by more tokens."
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimality", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="data and journal; goes on from what it has")
    add("--items", type=int, default=300)
    add("--engines", type=int, default=2)
    add("--grain", type=int, default=36, help="counts are multiples of it, or all")
    add("--tolerance", type=float, default=0.005)
    add("--out", type=Path, default=Path("benchmarks/results/optimality.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write JSON and markdown, print the tables."""
    options = parse(arguments)
    asked = {name: getattr(options, name) for name in ("items", "grain", "tolerance")}
    demo = SUBJECTS["demo"]
    data = questions(demo, "calibration", options.items, options.folder)
    with open_study(demo, data, options.folder, options.engines) as study:
        found = measure(study, STARTS, options.grain, options.tolerance)
    results = {"meta": {**measured_with(options), **asked, "starts": STARTS}, "found": found}
    save(options.out, results, render(results))


if __name__ == "__main__":
    main()
