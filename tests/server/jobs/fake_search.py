"""A search in the small, under the contract that ``vtr search`` has with the job service.

It counts to --items, one journal line a step, and continues there when it runs again. Where a
number in ``control.json`` beside the data file says so, it waits, fails, or ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from vtr_vllm.schedules import ModelGeometry, Schedule, fastv
from vtr_vllm.search_options import SearchOptions, add_flags, read_flags

GEOMETRY = ModelGeometry(
    layers=12, hidden_size=128, intermediate_size=320, heads=2, kv_heads=2, head_dim=64
)


def main() -> int:
    options = parse()
    control = json.loads(options.data.with_name("control.json").read_text())
    stop = signal.SIG_IGN if control.get("deaf") else stopped
    signal.signal(signal.SIGTERM, stop)
    out: Path = options.out
    out.mkdir(exist_ok=True)
    alone = (out / "alone").open("a")
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (out / "overlap").touch()  # what the service must never let happen
    with (out / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    journal = out / "journal.jsonl"
    done = len(journal.read_text().splitlines()) if journal.exists() else 0
    (out / "arguments.txt").write_text(json.dumps(sys.argv[1:]))
    tell(options, "progress", stage="search", planned=options.items, resumed_at=done)
    for step in range(done, options.items):
        while control.get("hold_at") == step:
            time.sleep(0.05)
            control = json.loads(options.data.with_name("control.json").read_text())
        if control.get("fail_at") == step:
            tell(options, "failed", message="no engine")
            print("Traceback ...\nsearch: no engine answers at step", step, file=sys.stderr)
            return 3
        with journal.open("a") as file:
            file.write(f"{step}\n")
        tell(options, "step", evaluations=step + 1)
        tell(options, "progress", stage="search", requests=step + 1, planned=options.items)
        if step == 0:
            leave(options, options.budgets[:1])
            tell(options, "found", schedules=[name_of(options, options.budgets[0])])
    leave(options, options.budgets)
    tell(options, "done")
    return 0


def parse() -> argparse.Namespace:
    """The flags of the real search."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    add_flags(parser, SearchOptions, without=("kind",))
    for flag in ("--out", "--events"):
        parser.add_argument(flag, type=Path)
    options = parser.parse_args()
    asked = read_flags(parser, SearchOptions, options)
    options.items, options.data = asked.items or 3, Path(asked.data)
    options.budgets, options.seed = asked.budgets, asked.seed
    return options


def tell(options: argparse.Namespace, kind: str, **facts: object) -> None:
    with options.events.open("a") as file:
        file.write(json.dumps({"time": time.time(), "kind": kind, **facts}) + "\n")


def stopped(*_: object) -> None:
    raise SystemExit(143)


def name_of(options: argparse.Namespace, budget: float) -> str:
    return f"{options.kind}-{budget}-seed{options.seed}"


def leave(options: argparse.Namespace, budgets: list[float]) -> None:
    """Schedules and a report, as the real search writes them as it goes."""
    for budget in budgets:
        form = fastv(GEOMETRY, budget)
        name = name_of(options, budget)
        found = Schedule(name, GEOMETRY, form.keep, form.rules, options.kind, budget=budget)
        found.save(options.out / f"{name}.json")
    report = options.out / "report"
    report.mkdir(exist_ok=True)
    figure = '<a href="keep.png"><img src="keep.png" alt="Keep rates"></a>'
    table = '<a href="trials.csv">trials.csv</a>'
    style = "<style>h1 { color: rgb(1, 2, 3) }</style>"
    (report / "index.html").write_text(
        f"<!doctype html><title>search</title>{style}<h1>Report</h1>{figure}{table}"
    )
    Image.new("RGB", (4, 3), "red").save(report / "keep.png")
    (report / "trials.csv").write_text("search,budget\n")
    (report / "search.json").write_text("{}")


if __name__ == "__main__":
    raise SystemExit(main())
