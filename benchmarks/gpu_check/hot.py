"""Stage 4: where the time goes: a reduced prefill step and a decode step under torch's profiler."""

from __future__ import annotations

import gzip
import os
import shutil
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

from benchmarks.arms import ENVIRONMENT, PLUGINS
from benchmarks.gpu_check.fast import parse, settings
from benchmarks.gpu_check.findings import Report
from benchmarks.shapes import Shape, make_request, make_shape
from vtr_vllm.schedules import ScheduleBook

BUDGET = 0.25
LARGEST = 15
DECODE_STEPS = 8
RUNNING, DRY_RUNNING = (1, 64), (1, 2)
MOST_TRACE_BYTES = 12 << 20


class Stepper:
    """A VTR engine that is stepped by hand."""

    def __init__(self, shape: Shape, arm: str, dry_run: bool, fast_start: bool) -> None:
        from vllm import LLM

        arguments = shape.engine_args(dry_run) | settings(dry_run, fast_start)
        if arm == "vtr":
            from vtr_vllm.engine.common.config import SCHEDULER_CLS, WORKER_CLS

            arguments |= {"worker_cls": WORKER_CLS, "scheduler_cls": SCHEDULER_CLS}
        self.shape = shape
        self.engine = LLM(**arguments).llm_engine
        self.book = ScheduleBook(shape.geometry)
        self._next = 0

    def add(self, count: int, budget: float, tokens: int) -> None:
        """Add requests, each with an image of its own."""
        from vllm import SamplingParams

        wire = self.book.for_budget(budget).schedule.wire()
        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, extra_args=wire
        )
        for _ in range(count):
            name = f"p{self._next}"
            request = self.engine.input_processor.process_inputs(
                name,
                make_request(self.shape.name, self._next),
                params,
                supported_tasks=self.engine.get_supported_tasks(),
            )
            self._next += 1
            self.engine.add_request(name, request, params)

    def step_until_decoding(self) -> None:
        """Step until no request waits."""
        scheduler = self.engine.engine_core.engine_core.scheduler
        while scheduler.waiting or any(
            request.num_computed_tokens < request.num_prompt_tokens for request in scheduler.running
        ):
            self.engine.step()

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


def profiled(run: Callable[[], None]) -> tuple[Any, float]:
    """Return the profile of ``run`` and its seconds under the profiler."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        seconds = walled(run)
    return found, seconds


def largest(found: Any, attribute: str) -> list[dict[str, Any]]:
    """Return the operations that took most time, by themselves."""
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, attribute))
    return [
        {"name": e.key[:100], "ms": getattr(e, attribute) / 1e3, "calls": e.count}
        for e in events[:LARGEST]
        if getattr(e, attribute) > 0
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
    prepare()
    wall = walled(run) / steps
    prepare()
    found, _ = profiled(run)
    device = largest(found, "self_device_time_total")
    host = largest(found, "self_cpu_time_total")
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
        device=device,
        host=host,
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
    running: tuple[int, ...],
    out: Path | None,
) -> None:
    """Say where the time of one arm goes."""
    engine = stepper.engine
    name = "stock" if arm == "stock" else f"vtr at {budget}"

    def prefill(count: int) -> None:
        stepper.drain()
        stepper.add(count, budget, 1)

    for count in (1, 8):
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
        stepper.step_until_decoding()
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


def main() -> None:
    """Run the stage; ``--arm`` is for its own processes."""
    if "--arm" not in sys.argv:
        for arm in ("vtr", "stock"):
            subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu_check.hot", *sys.argv[1:], "--arm", arm],
                env=os.environ | ENVIRONMENT | {"VLLM_PLUGINS": PLUGINS[arm]},
                check=False,
            )
        return
    at = sys.argv.index("--arm")
    arm = sys.argv[at + 1]
    report, options = Report("hot"), parse("hot", sys.argv[1:at])
    with tempfile.TemporaryDirectory() as scratch:
        has_gpu = torch.cuda.is_available()
        shape = make_shape("demo" if options.dry_run else "llava-7b", Path(scratch), None, has_gpu)
        stepper = Stepper(shape, arm, options.dry_run, options.fast_start)
        stepper.add(4, BUDGET if arm == "vtr" else 1.0, 4)
        stepper.drain()
        running = DRY_RUNNING if options.dry_run else RUNNING
        watch(report, stepper, arm, BUDGET if arm == "vtr" else 1.0, running, options.out)


if __name__ == "__main__":
    main()
