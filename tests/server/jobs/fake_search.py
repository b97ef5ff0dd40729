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

from vtr_vllm.schedules import ModelGeometry, Schedule, fastv

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
    finish(options)
    tell(options, "done")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["g-search", "p-sigmoid", "all"])
    for flag in ("--model", "--objective", "--servers"):
        parser.add_argument(flag)
    for flag in ("--data", "--out", "--events", "--heldout"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--items", type=int, default=3)
    parser.add_argument("--tolerance", type=float)
    parser.add_argument("--budgets", type=lambda text: [float(b) for b in text.split(",")])
    return parser.parse_args()


def tell(options: argparse.Namespace, kind: str, **facts: object) -> None:
    with options.events.open("a") as file:
        file.write(json.dumps({"time": time.time(), "kind": kind, **facts}) + "\n")


def stopped(*_: object) -> None:
    raise SystemExit(143)


def finish(options: argparse.Namespace) -> None:
    for budget in options.budgets:
        form = fastv(GEOMETRY, budget)
        name = f"{options.kind}-{budget}-seed{options.seed}"
        found = Schedule(name, GEOMETRY, form.keep, form.rules, options.kind, budget=budget)
        found.save(options.out / f"{name}.json")
    report = options.out / "report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text("<!doctype html><title>search</title>")
    (report / "keep.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (report / "search.json").write_text("{}")


if __name__ == "__main__":
    raise SystemExit(main())
