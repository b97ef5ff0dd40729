"""Whether counts by attention mass beat fixed ones: ``python -m benchmarks.attention_mass --help``.

A share of the tokens is kept by ``diverse`` before layer 0; then one cut keeps the fewest that hold a share of the
attention. Beside it the same cut with a count that is the same for every question, and comes to the same
mean keep rate. Both answer the same held-out questions.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.rankings.samples import SUBJECTS
from benchmarks.record import measured_with, say, write
from benchmarks.report import measured
from benchmarks.study import Asked, means, percent, questions, with_interval
from vtr_vllm.photo.parts import FOLDER
from vtr_vllm.schedules import RankRule
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.statistics import paired_difference

SETTINGS = ("model", "split", "n", "first", "layers", "rules", "shares")
"""Options that change what is measured."""


def one_cut(layers: int, first: float, layer: int, rate: float, rule: str) -> Candidate:
    """``first`` of the tokens by ``diverse``, and ``rate`` of all from ``layer`` on."""
    keep = (first,) * layer + (rate,) * (layers - layer)
    return Candidate(keep, (RankRule.parse("diverse"), RankRule.parse(rule)))


def rate_of(mean_keep: float, layers: int, first: float, layer: int) -> float:
    """Share from ``layer`` on with which ``one_cut`` comes to a mean keep rate."""
    return (mean_keep * layers - first * layer) / (layers - layer)


def row(
    asked: Asked, options: argparse.Namespace, layer: int, rule: str, share: float
) -> dict[str, Any]:
    """One adaptive cut, and its twin of fixed counts."""
    groups, layers = asked.data.groups, asked.layers
    most = options.first - 1 / 64  # a cut must drop something
    scores, rates = asked.run(one_cut(layers, options.first, layer, most, f"{rule}@{share:g}"))
    mean_keep = statistics.fmean(kept := means(rates))
    rate = rate_of(mean_keep, layers, options.first, layer)
    fixed, fixed_kept = asked.run(one_cut(layers, options.first, layer, rate, rule))
    found = {
        "layer": layer,
        "rule": rule,
        "share": share,
        "mean_keep": mean_keep,
        "least": min(kept),
        "greatest": max(kept),
        "adaptive": with_interval(scores, groups),
        "fixed_keep": statistics.fmean(means(fixed_kept)),
        "fixed": with_interval(fixed, groups),
        "difference": list(paired_difference(scores, fixed, groups)),
    }
    say(f"{found}")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Scores in percent, with 95% intervals."""
    lines = [
        "| cut before layer | rule | mean keep [least, greatest] | adaptive | fixed count | difference |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        adaptive, fixed = (percent(each[name]) for name in ("adaptive", "fixed"))
        lines.append(
            f"| {each['layer']} | `{each['rule']}@{each['share']:g}` |"
            f" {each['mean_keep']:.3f} [{each['least']:.3f}, {each['greatest']:.3f}] |"
            f" {adaptive} | {fixed} | {percent(each['difference'], '+')} |"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention_mass", description=__doc__
    )
    add = parser.add_argument
    add("--model", choices=SUBJECTS, default="demo")
    add("--split", default="test")
    add("--n", type=int, default=1000, help="questions")
    add("--first", type=float, default=0.6, help="share that is kept before layer 0")
    add("--layers", type=int, nargs="+", default=[3, 6], help="before which the cut lies, in turn")
    add("--rules", nargs="+", default=["last", "instruction-norope"])
    add("--shares", type=float, nargs="+", default=[0.4, 0.7])
    add("--parts", type=Path, default=FOLDER, help="of the photo model's scenes")
    add("--folder", type=Path, default=Path("build/attention-mass"), help="of the questions")
    add("--out", type=Path, default=Path("benchmarks/results/attention-mass.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    options = parse(arguments)
    folder = options.folder / options.model
    subject = SUBJECTS[options.model]
    data = questions(subject, options.split, options.n, folder, options.parts)
    asked = Asked(subject, data)
    rows = [
        row(asked, options, layer, rule, share)
        for layer in options.layers
        for rule in options.rules
        for share in options.shares
    ]
    meta = measured_with(options)
    write(options.out, {"meta": meta, "rows": rows})
    print(f"{measured(meta, *SETTINGS)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
