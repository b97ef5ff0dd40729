"""Stage 4: where the time goes: a reduced prefill step and a decode step under torch's profiler."""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.arms import ENVIRONMENT, PLUGINS, classes
from benchmarks.gpu_check.fast import parse, settings
from benchmarks.gpu_check.findings import Report
from benchmarks.shapes import Shape, make_request, make_shape
from benchmarks.worker import rendered, step_until_decoding
from vtr_vllm.schedules import ScheduleBook

BUDGET = 0.25
LARGEST = 15
DECODE_STEPS = 8
REPEATS = 3
RUNNING, DRY_RUNNING = (1, 64), (1, 2)
PREFILLS, DRY_PREFILLS = (1, 8), (1, 2)
MOST_TRACE_BYTES = 12 << 20


class Stepper:
    """A VTR engine that is stepped by hand."""

    def __init__(self, shape: Shape, arm: str, dry_run: bool, fast_start: bool) -> None:
        from vllm import LLM

        arguments = shape.engine_args(dry_run) | settings(dry_run, fast_start) | classes(arm)
        self.shape = shape
        self.engine = LLM(**arguments).llm_engine
        self.book = ScheduleBook(shape.geometry)
        self._next = 0

    def add(self, count: int, budget: float, tokens: int) -> None:
        """Add requests, each with an image of its own."""
        from vllm import SamplingParams

        wire = self.book.for_budget(budget, reuse=False).schedule.wire()
        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, extra_args=wire
        )
        for _ in range(count):
            name = f"p{self._next}"
            request = rendered(self.engine, name, make_request(self.shape.name, self._next), params)
            self._next += 1
            self.engine.add_request(name, request, params)

    def drain(self) -> None:
        """Step until nothing runs."""
        while self.engine.has_unfinished_requests():
            self.engine.step()


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def walled(run: Callable[[], None]) -> float:
    """Return seconds until ``run`` and what it launched are done."""
    synchronize()
    begun = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - begun


def profiled(run: Callable[[], None]) -> Any:
    """Return the profile of ``run``."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        walled(run)
    return found


def largest(found: Any, device: DeviceType) -> list[dict[str, Any]]:
    """Return what took most time, by itself: kernels of the GPU, or operations of the host."""
    kind = "device" if device == DeviceType.CUDA else "cpu"
    events = [event for event in found.key_averages() if event.device_type == device]
    spent = [(getattr(event, f"self_{kind}_time_total"), event) for event in events]
    return [
        {"name": event.key[:100], "ms": time / 1e3, "calls": event.count}
        for time, event in sorted(spent, key=lambda each: -each[0])[:LARGEST]
    ]


def on_device(found: Any) -> list[Any]:
    """Return the kernels, copies and fills that ran."""
    return [event for event in found.events() if event.device_type == DeviceType.CUDA]


def launches(found: Any) -> int:
    """Return how often the host launched something: a kernel, or a graph of many."""
    return sum(1 for event in found.events() if "Launch" in event.name)


def copies(found: Any) -> int:
    """Return how often the host asked for a copy."""
    return sum(1 for event in found.events() if event.name.startswith("cudaMemcpy"))


def say(
    report: Report,
    name: str,
    run: Callable[[], None],
    prepare: Callable[[], None],
    steps: int,
    out: Path | None,
) -> None:
    """Time ``run`` by itself, then under the profiler; ``prepare`` comes before each."""
    walls = []
    for _ in range(REPEATS):  # the first meets shapes for the first time
        prepare()
        walls.append(walled(run) / steps)
    wall = statistics.median(walls)
    prepare()
    found = profiled(run)
    ran = on_device(found)
    busy = sum(event.time_range.elapsed_us() for event in ran) / 1e3 / steps
    counts = {
        "kernels": len(ran) // steps,
        "launches": launches(found) / steps,
        "copies": copies(found) / steps,
    }
    report.say(
        name,
        None,
        f"{wall * 1e3:.2f} ms a step, kernels busy {busy:.2f} ms; "
        + ", ".join(f"{count:.0f} {name}" for name, count in counts.items()),
        wall_ms=wall * 1e3,
        busy_ms=busy,
        **counts,
        device=largest(found, DeviceType.CUDA),
        host=largest(found, DeviceType.CPU),
    )
    if out is not None:
        keep_trace(found, out / f"{name.replace(' ', '-').replace(',', '')}.json.gz")


def keep_trace(found: Any, path: Path) -> None:
    """Write the trace, unless it is very large."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "trace.json")
        found.export_chrome_trace(str(plain))
        path.parent.mkdir(parents=True, exist_ok=True)
        with plain.open("rb") as source, gzip.open(path, "wb", 6) as target:
            shutil.copyfileobj(source, target)
        if path.stat().st_size > MOST_TRACE_BYTES:
            path.unlink()


def watch(
    report: Report,
    stepper: Stepper,
    arm: str,
    budget: float,
    prefills: tuple[int, ...],
    running: tuple[int, ...],
    out: Path | None,
) -> None:
    """Say where the time of one arm goes."""
    engine = stepper.engine
    name = "stock" if arm == "stock" else f"vtr at {budget}"

    def prefill(count: int) -> None:
        stepper.drain()
        stepper.add(count, budget, 1)

    for count in prefills:
        say(
            report,
            f"{name}, prefill of {count}",
            lambda: stepper.drain(),
            lambda count=count: prefill(count),
            1,
            out if arm == "vtr" else None,
        )

    def decode() -> None:
        for _ in range(DECODE_STEPS):
            engine.step()

    def prepare(count: int) -> None:
        stepper.drain()
        stepper.add(count, budget, 4 * DECODE_STEPS)
        step_until_decoding(engine)
        for _ in range(4):
            engine.step()

    for count in running:
        say(
            report,
            f"{name}, decode with {count} running",
            decode,
            lambda count=count: prepare(count),
            DECODE_STEPS,
            out if arm == "vtr" else None,
        )
    stepper.drain()


def run_arm(report: Report, arm: str, options: argparse.Namespace) -> None:
    """Start one arm's engine and say where its time goes."""
    name = "demo" if options.dry_run else "llava-7b"
    prefills, running = (DRY_PREFILLS, DRY_RUNNING) if options.dry_run else (PREFILLS, RUNNING)
    budget = BUDGET if arm == "vtr" else 1.0
    with tempfile.TemporaryDirectory() as scratch:
        shape = make_shape(name, Path(scratch), None, torch.cuda.is_available())
        stepper = Stepper(shape, arm, options.dry_run, options.fast_start)
        stepper.add(4, budget, 4)
        stepper.drain()
        watch(report, stepper, arm, budget, prefills, running, options.out)


def main() -> None:
    """Run the stage: itself once for each arm, since an engine owns its process."""
    options = parse("hot")
    if options.arm is not None:
        run_arm(Report("hot"), options.arm, options)
        return
    arms = ("vtr",) if options.dry_run else ("vtr", "stock")
    for arm in arms:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_check.hot", *sys.argv[1:], "--arm", arm],
            env=os.environ | ENVIRONMENT | {"VLLM_PLUGINS": PLUGINS[arm]},
            check=True,
        )


if __name__ == "__main__":
    main()
