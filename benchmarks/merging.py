"""What merging is worth beside dropping, at the same counts: ``python -m benchmarks.merging --help``.

The demo model in vLLM. Each schedule is run as it is but for its merges, and then with one merge at every cut whose
rule can merge so; all answer the same held-out questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rankings.samples import SUBJECTS
from benchmarks.record import measured_with, say, write
from benchmarks.report import measured
from benchmarks.study import Asked, percent, questions, with_interval
from vtr_vllm.own_models import DEMO_SCHEDULES
from vtr_vllm.ranking.merge import merges
from vtr_vllm.schedules import Schedule, ScheduleBook
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.statistics import paired_difference

SETTINGS = ("splits", "n", "schedules", "merges")
"""Options that change what is measured."""


def dropping(schedule: Schedule) -> Candidate:
    """The schedule without merges."""
    return Candidate(schedule.keep, tuple(replace(rule, merge="") for rule in schedule.rules))


def merging(dropped: Candidate, name: str) -> Candidate | None:
    """The same with the merge ``name`` at every cut whose rule can; None: there is none."""
    rules = tuple(rule.merging(name) if rule.can_merge(name) else rule for rule in dropped.rules)
    return None if rules == dropped.rules else replace(dropped, rules=rules)


def rows_of(
    asked: Asked, split: str, schedule: Schedule, names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a way of going on with what a schedule drops; the first of them drops it."""
    groups, dropped = asked.data.groups, dropping(schedule)
    lost, _ = asked.run(dropped)
    common = {"split": split, "schedule": schedule.name}
    rows: list[dict[str, Any]] = [common | {"merge": "", "right": with_interval(lost, groups)}]
    for name in names:
        if (merged := merging(dropped, name)) is None:
            continue
        scores, _ = asked.run(merged)
        rows.append(common | {"merge": name, "right": with_interval(scores, groups)})
        rows[-1]["difference"] = list(paired_difference(scores, lost, groups))
    for row in rows:
        say(f"{row}")
    return rows


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """One row a split and schedule: right when dropped, and what each merge adds to it, in points."""
    head = ["split", "schedule", "dropped", *(f"`{name}`" for name in names)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for first in (row for row in rows if not row["merge"]):
        cells = [first["split"], first["schedule"], percent(first["right"])]
        for name in names:
            found = [
                percent(row["difference"], "+")
                for row in rows
                if (row["split"], row["schedule"], row["merge"])
                == (first["split"], first["schedule"], name)
            ]
            cells += found or ["–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    add = parser.add_argument
    budgets = ("0.5", "0.25", "0.125")
    named = [f"{kind}-{b}" for kind in ("searched", "divprune", "vtc-cls") for b in budgets]
    add("--schedules", nargs="+", default=named, help="stored ones, or forms")
    add("--merges", nargs="+", choices=sorted(merges()), default=sorted(merges()))
    add("--splits", nargs="+", default=["test", "test-hard"])
    add("--n", type=int, default=1000, help="questions of each")
    add("--folder", type=Path, default=Path("build/merging"), help="of the questions")
    add("--out", type=Path, default=Path("benchmarks/results/merging.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON after each schedule."""
    options = parse(arguments)
    subject, meta = SUBJECTS["demo"], measured_with(options)
    some = Schedule.load(next(DEMO_SCHEDULES.glob("*.json")))
    book = ScheduleBook.from_folder(some.geometry, DEMO_SCHEDULES)
    chosen = [book.by_name(name) for name in options.schedules]
    rows: list[dict[str, Any]] = []
    asked: Asked | None = None
    for split in options.splits:
        data = questions(subject, split, options.n, options.folder)
        asked = Asked(subject, data) if asked is None else asked.about(data)
        for schedule in chosen:
            rows += rows_of(asked, split, schedule, options.merges)
            write(options.out, {"meta": meta, "rows": rows})
    print(f"{measured(meta, *SETTINGS)}\n\n{table(rows, options.merges)}")


if __name__ == "__main__":
    main()
