"""What trained ATP modules decide, beside fixed counts: ``python -m benchmarks.atp --help``.

The demo model in vLLM, one batch of held-out questions after another: the modules as they decide; the same
modules with each cut's mean count for every question; attention from the text (eq. 4) alone at these counts; and
the stored schedule of the same mean keep rate.
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
from vtr_vllm.own_models import DEMO_SCHEDULES
from vtr_vllm.schedules import RankRule, Schedule, ScheduleBook
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.statistics import paired_difference

SETTINGS = ("atp", "split", "n")
"""Options that change what is measured."""


def fixed(made: Schedule, kept: list[Any], rule: str) -> Candidate:
    """One count a cut for every question: the mean of what the modules kept there."""
    rates = [statistics.fmean(column) for column in zip(*kept, strict=True)]
    falls = [layer for layer, rate in enumerate(rates) if rate < (1.0, *rates)[layer]]
    if falls != list(made.cuts):
        raise ValueError(f"the modules drop before layers {falls}, and lie before {made.cuts}")
    return Candidate(tuple(rates), (RankRule.parse(rule),) * len(falls))


def run(asked: Asked, made: Schedule, stored: ScheduleBook) -> list[dict[str, Any]]:
    """One row a way to answer, the modules' own first."""
    groups = asked.data.groups
    own, kept = asked.run(Candidate(made.keep, made.rules))
    spent = means(kept)
    searched = stored.for_budget(statistics.fmean(spent), reuse=False).schedule
    ways = {
        "modules, fixed counts": fixed(made, kept, "atp-fixed"),
        "attention of the text, fixed counts": fixed(made, kept, "instruction"),
        f"stored schedule {searched.name}": Candidate(searched.keep, searched.rules),
    }
    rows = [
        {
            "way": "modules, as they decide",
            "keep": [statistics.fmean(spent), min(spent), max(spent)],
        }
    ]
    rows[0]["right"] = with_interval(own, groups)
    for way, candidate in ways.items():
        scores, rates = asked.run(candidate)
        each = means(rates)
        rows.append({"way": way, "keep": [statistics.fmean(each), min(each), max(each)]})
        rows[-1]["right"] = with_interval(scores, groups)
        rows[-1]["difference"] = list(paired_difference(own, scores, groups))
        say(f"{rows[-1]}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Scores in percent, with 95% intervals."""
    lines = ["| | mean keep [least, greatest] | right | modules less this |", "|---|---|---|---|"]
    for each in rows:
        mean, low, high = each["keep"]
        difference = percent(each["difference"], "+") if "difference" in each else ""
        lines.append(
            f"| {each['way']} | {mean:.3f} [{low:.3f}, {high:.3f}] | {percent(each['right'])} |"
            f" {difference} |"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atp", description=__doc__)
    add = parser.add_argument
    add("--atp", type=Path, required=True, help="what `vtr train atp --model demo` left")
    add("--split", default="test")
    add("--n", type=int, default=1000, help="questions")
    add("--folder", type=Path, default=Path("build/atp"), help="of the questions")
    add("--out", type=Path, default=Path("benchmarks/results/atp.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    options = parse(arguments)
    subject = SUBJECTS["demo"]
    data = questions(subject, options.split, options.n, options.folder)
    made = Schedule.load(options.atp / "schedules" / "atp.json")
    modules = {"vtr": {"atp": str(options.atp.resolve())}}
    asked = Asked(subject, data, additional_config=modules)
    stored = ScheduleBook.from_folder(made.geometry, DEMO_SCHEDULES)
    rows = run(asked, made, stored)
    meta = measured_with(options)
    write(options.out, {"meta": meta, "rows": rows})
    print(f"{measured(meta, *SETTINGS)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
