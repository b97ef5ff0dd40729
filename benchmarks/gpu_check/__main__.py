"""Run the stages, each in a process of its own: ``python -m benchmarks.gpu_check --help``.

A stage writes each thing it finds at once; none stops the next. What is known so far is always in the
results file, out of which ``docs/gpu.md`` is made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from benchmarks.arms import ROOT
from benchmarks.gpu_check.findings import one_line, tail
from benchmarks.gpu_check.stages import STAGES, Stage
from benchmarks.record import machine, write

RESULTS = ROOT / "benchmarks" / "results"
DRY_RESULTS = ROOT / "build" / "gpu-check" / "dry-run.json"
LOG_LINES = 60
LEAST_S = 10
RUNNING: set[subprocess.Popen[str]] = set()
"""Processes of stages, each in a session of its own: none ends with this one by itself."""


class Results:
    """The results file; written anew after every finding.

    ``meta`` is what this run's stages are noted with: a file holds stages of several runs.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self._path, self._meta = path, meta
        self.data: dict[str, Any] = {"gpu": meta["gpu"], "stages": {}}
        self._lock = threading.Lock()
        if path.exists():  # what an earlier run of other stages found
            self.data["stages"] = json.loads(path.read_text())["stages"]

    def begin(self, stage: str) -> dict[str, Any]:
        """Return the entry of a stage, which replaces that of an earlier run."""
        entry: dict[str, Any] = {"meta": self._meta, "findings": [], "outcome": "running"}
        self.data["stages"][stage] = entry
        return entry

    def add(self, entry: dict[str, Any], finding: dict[str, Any]) -> None:
        """Note a finding."""
        with self._lock:
            entry["findings"].append(finding)
            self._write()

    def write(self) -> None:
        """Write all that is known."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        write(self._path, self.data)


def results_file(gpu: str | None) -> Path:
    """Return the file of a card; without one a file of which no page is made."""
    if gpu is None:
        return RESULTS / "no-gpu.json"
    return RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def lines_of(process: subprocess.Popen[str], seconds: float) -> Iterator[str]:
    """Yield the lines that a process writes, for ``seconds`` at most."""
    queue: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            queue.put(line)
        queue.put(None)

    threading.Thread(target=read, daemon=True).start()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            line = queue.get(timeout=left)
        except Empty:
            return
        if line is None:
            return
        yield line


def run(stage: Stage, options: argparse.Namespace, results: Results, seconds: float) -> bool:
    """Run a stage for ``seconds`` at most; return whether it ended well."""
    with tempfile.TemporaryDirectory(prefix="vtr-gpu-check-") as folder:
        return _run(stage, options, results, seconds, Path(folder) / f"{stage.name}.log")


def _run(
    stage: Stage, options: argparse.Namespace, results: Results, seconds: float, log: Path
) -> bool:
    entry, begun = results.begin(stage.name), time.monotonic()
    process = start(stage, options, seconds, log)
    RUNNING.add(process)
    try:
        for line in lines_of(process, seconds):
            finding = json.loads(line)
            results.add(entry, finding)
            print(one_line(finding), flush=True)
        wrong = any(finding["ok"] is False for finding in entry["findings"])
        left = seconds - (time.monotonic() - begun)
        entry["outcome"] = outcome(stop(process, max(left, 5)), wrong)
    except json.JSONDecodeError as error:
        entry["outcome"] = f"broke off with a line that is no finding: {error.doc.strip()[:200]}"
    except (SystemExit, KeyboardInterrupt):
        entry["outcome"] = "ended from outside"
        raise
    except BaseException as error:
        entry["outcome"] = f"broke off: {error!r}"
        raise
    finally:
        stop(process)
        RUNNING.discard(process)
        entry["seconds"] = round(time.monotonic() - begun, 1)
        if entry["outcome"] not in ("ok", "failed"):
            entry["log"] = tail(log.read_text(errors="replace"), LOG_LINES)
            print(entry["log"], flush=True)
        results.write()
        print(f"     {stage.name}: {entry['outcome']} after {entry['seconds']} s", flush=True)
    return bool(entry["outcome"] == "ok")


def start(
    stage: Stage, options: argparse.Namespace, seconds: float, log: Path
) -> subprocess.Popen[str]:
    """Start a stage's process, whose findings are its output."""
    return subprocess.Popen(
        stage.command(
            options.dry_run,
            seconds,
            options.out.parent if options.out else None,
            options.fast_start,
        ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        start_new_session=True,
        env=os.environ | stage.environment(options.dry_run),
    )


def outcome(code: int | None, failed: bool) -> str:
    """Return how a stage ended; ``code`` is None when its time was over."""
    if code is None:
        return "time over"
    if code != 0:
        return f"broke off with exit code {code}"
    return "failed" if failed else "ok"


def stop(process: subprocess.Popen[str], grace: float = 5) -> int | None:
    """Return the exit code, or None of a process that had to be ended; with all it started."""
    try:
        code = process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        code = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE")
    parser.add_argument(
        "--from", type=int, default=1, dest="first", choices=range(1, len(names) + 1)
    )
    parser.add_argument("--minutes", type=float, default=20, help="for all stages together")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU: checks the script")
    parser.add_argument(
        "--fast-start",
        action="store_true",
        help="graphs of decode steps alone, nothing compiled, in both arms: a minute less a shape",
    )
    parser.add_argument("--out", type=Path, help="results file; default by the card's name")
    parser.add_argument("--plan", action="store_true", help="print what each stage takes, and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 when everything was right."""
    options = parse(arguments)
    if options.plan:
        from benchmarks.gpu_check import estimate  # vLLM behind it

        print(estimate.table())
        return 0
    if options.dry_run and options.out is None:
        options.out = DRY_RESULTS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    facts = machine()
    path = options.out or results_file(None if facts["gpu"] is None else str(facts["gpu"]))
    how = {"dry_run": options.dry_run, "fast_start": options.fast_start}
    results = Results(path, facts | how)
    end = time.monotonic() + 60 * options.minutes

    def run_one(stage: Stage) -> bool:
        seconds = end - time.monotonic()
        if not options.dry_run:  # a stage's limit is for a GPU
            seconds = min(stage.limit_s, seconds)
        if seconds < LEAST_S:
            print(f"     {stage.name}: left out, the time is over", flush=True)
            return False
        return run(stage, options, results, seconds)

    wanted = [stage for stage in STAGES[options.first - 1 :] if stage.name in options.stages]
    if options.dry_run:  # nothing is measured: stages may run beside each other
        with ThreadPoolExecutor(2) as pool:
            try:
                good = list(pool.map(run_one, wanted))
            except BaseException:  # comes here alone, and the pool waits for its threads
                for process in list(RUNNING):
                    stop(process)
                raise
    else:
        good = [run_one(stage) for stage in wanted]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
