"""Stage 2: answers are right, whatever attention, graphs and compilation.

The demo model in one engine process for each way of running it: budget 1.0 beside stock vLLM run the
same way, reduced requests beside the fp32 reference, in one mixed batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import ROOT
from benchmarks.gpu_check import asker
from benchmarks.gpu_check.findings import STARTED, Report, tail
from benchmarks.gpu_check.judge import agreement, lead_lost
from tests.reference.model import ReferenceLlava
from vtr_vllm import demo
from vtr_vllm.schedules import make_plan

SCHEDULES = (
    *("p-sigmoid-0.5", "p-sigmoid-0.25", "fastv-0.25", "pdrop-0.5", "random-0.25", "vtw-0.5"),
    asker.ADAPTIVE,
)
TOLERANCE = {"bfloat16": 0.1, "float32": 1e-3}
"""Nats by which a token may lead and still differ: what rounding can turn around."""
AS_STOCK = "full budget as stock"
THREADS = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
"""Of each process: many run at once, and the GPU does the work."""
GIB = 1 << 30
ENGINES_AT_ONCE = 7


@dataclass(frozen=True)
class Way:
    """A way of running the engine."""

    name: str
    engine: dict[str, Any]
    dtype: str = "bfloat16"
    like: str | None = None
    """Compare with the VTR answers of this way instead of running stock."""
    preempts: bool = False
    """Has so few blocks that requests must be preempted."""


def _graphs(mode: str, compiled: bool) -> dict[str, Any]:
    return {"compilation_config": {"mode": 3 if compiled else 0, "cudagraph_mode": mode}}


EAGER: dict[str, Any] = {"enforce_eager": True}
FA3, TRITON = {"attention_backend": "FLASH_ATTN"}, {"attention_backend": "TRITON_ATTN"}
WAYS = (
    Way("fa3 eager", FA3 | EAGER),
    Way("fa3 as vLLM starts by default", FA3),
    Way("fa3 piecewise graphs", FA3 | _graphs("PIECEWISE", True)),
    Way("fa3 full graphs, not compiled", FA3 | _graphs("FULL_DECODE_ONLY", False)),
    Way("triton as vLLM starts by default", TRITON),
    Way(
        "fa3 default, synchronous scheduling",
        FA3 | {"async_scheduling": False},
        like="fa3 as vLLM starts by default",
    ),
    Way(
        "fa3 default, too few blocks",
        FA3 | {"num_gpu_blocks_override": 110, "max_num_batched_tokens": 1024},
        like="fa3 as vLLM starts by default",
        preempts=True,
    ),
)
QUESTIONS = 8
"""Asked under each schedule."""


def is_full(schedule: str | None) -> bool:
    """Whether nothing is dropped."""
    return schedule in (None, "full")


def asked(schedules: Sequence[str | None], questions: int) -> list[asker.Asked]:
    """Return every question under every schedule, neighbours under different ones."""
    return [
        (len(schedules) * number + at, schedule)
        for number in range(questions)
        for at, schedule in enumerate(schedules)
    ]


@dataclass
class Job:
    """An engine process."""

    way: Way
    arm: str
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    result: dict[str, Any] | None = None
    log: Path = field(default_factory=Path)


class Jobs:
    """Runs engine processes, so many at once."""

    def __init__(self, jobs: list[Job], setup: dict[str, Any], folder: Path, at_once: int) -> None:
        self._setup, self._folder, self._at_once = setup, folder, at_once
        self._waiting, self._running = deque(enumerate(jobs)), dict[int, Job]()

    def __iter__(self) -> Iterator[Job]:
        """Yield each job when it has ended."""
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._at_once:
                self._start(*self._waiting.popleft())
            for number, job in list(self._running.items()):
                assert job.process is not None
                if job.process.poll() is not None:
                    del self._running[number]
                    answer = self._folder / f"{number}.answer"
                    if job.process.returncode == 0 and answer.exists():
                        job.result = json.loads(answer.read_text())
                    yield job
            time.sleep(0.1)

    def _start(self, number: int, job: Job) -> None:
        setup, answer = (self._folder / f"{number}.{kind}" for kind in ("setup", "answer"))
        asked = self._setup["asked"]
        if job.arm == "stock":
            asked = [(question, None) for question, name in asked if is_full(name)]
        setup.write_text(
            json.dumps(
                self._setup
                | {"arm": job.arm, "asked": asked}
                | {"engine": self._setup["engine"] | {"dtype": job.way.dtype} | job.way.engine}
            )
        )
        job.log, job.begun = self._folder / f"{number}.log", time.monotonic()
        job.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check.asker", setup, answer],
            cwd=ROOT,
            env=os.environ | THREADS | asker.environment(job.arm),
            stdout=subprocess.DEVNULL,
            stderr=job.log.open("wb"),
        )
        self._running[number] = job


class Judge:
    """Says of each engine, as soon as it can, whether it was right."""

    def __init__(self, report: Report, setup: dict[str, Any]) -> None:
        self._report, self._asked = report, setup["asked"]
        self._reference = ReducedReference()
        self._results: dict[tuple[str, str], dict[str, Any]] = {}
        self._due: list[Way] = []

    def take(self, job: Job) -> None:
        """Take in what an engine answered."""
        name, seconds = f"{job.way.name}, {job.arm}", time.monotonic() - job.begun
        if job.result is None:
            assert job.process is not None
            text = f"exit {job.process.returncode} after {seconds:.0f} s"
            log = tail(job.log.read_text(errors="replace"), 40)
            self._report.say(name, False, text, log=log, way=job.way.name, check=STARTED[job.arm])
            return
        facts = {key: value for key, value in job.result.items() if key != "answers"}
        facts |= {"seconds": seconds, "way": job.way.name, "check": STARTED[job.arm]}
        self._report.say(name, True, f"ran in {seconds:.0f} s", **facts)
        self._results[job.way.name, job.arm] = job.result
        if job.arm == "vtr":
            self._due.append(job.way)
            self._reduced(job.way, job.result["answers"])
        for way in list(self._due):
            if self._full(way):
                self._due.remove(way)

    def end(self) -> None:
        """Say what nothing could be compared with."""
        for way in self._due:
            text = "nothing to compare with ran"
            self._report.say(f"{way.name}: full budget", False, text, way=way.name, check=AS_STOCK)

    def _full(self, way: Way) -> bool:
        other = self._results.get((way.like, "vtr") if way.like else (way.name, "stock"))
        mine = self._results[way.name, "vtr"]
        if other is None:
            return False
        if way.like:
            found, against = agreement(other["answers"], mine["answers"]), way.like
        else:
            full = [
                answer
                for answer, (_, name) in zip(mine["answers"], self._asked, strict=True)
                if is_full(name)
            ]
            found, against = agreement(other["answers"], full), "stock"
        ok = found.within(TOLERANCE[way.dtype]) and (mine["preempted"] > 0 or not way.preempts)
        text = f"{found.text()}; preempted {mine['preempted']}"
        self._report.say(
            f"{way.name}: as {against}",
            ok,
            text,
            way=way.name,
            check=AS_STOCK,
            equal=found.equal,
            total=found.total,
            worst=found.worst,
        )
        return True

    def _reduced(self, way: Way, answers: list[dict[str, Any]]) -> None:
        for schedule in sorted({name for _, name in self._asked if name and not is_full(name)}):
            lost = [
                self._reference.lost(question, schedule, answer["tokens"], answer["found"])
                for (question, name), answer in zip(self._asked, answers, strict=True)
                if name == schedule
            ]
            limit = TOLERANCE[way.dtype]
            within = sum(value <= limit for value in lost)
            # bf16 may turn a near tie among 144 tokens around, and with it a word in a hundred.
            ok = within >= len(lost) - (len(lost) // 8 if way.dtype == "bfloat16" else 0)
            self._report.say(
                f"{way.name}: {schedule} as the fp32 reference",
                ok,
                f"{within} of {len(lost)} answers, the worst by {max(lost):.4f} nats",
                way=way.name,
                check=schedule,
                within=within,
                total=len(lost),
                worst=max(lost),
            )


class ReducedReference:
    """What the independent fp32 implementation says of reduced requests."""

    def __init__(self) -> None:
        self._model, self._book = ReferenceLlava(demo.CHECKPOINT), asker.book()

    def lost(
        self, question: int, schedule: str, tokens: list[int], counts: list[int] | None
    ) -> float:
        """Return by how much the reference prefers its own words, at worst; nats.

        ``counts``: what adaptive cuts found, which the reference takes as given.
        """
        asked = asker.prompt(question)
        ids = self._model.prompt_token_ids(asked["prompt"])
        vision = sum(token == self._model.config.image_token_id for token in ids)
        found = self._book.by_name(schedule)
        plan = make_plan(found.keep, found.rules, vision)
        assert plan.is_adaptive == (counts is not None), "counts are told of adaptive cuts alone"
        plan = plan if counts is None else plan.settled(counts)
        rules = {cut: str(rule) for cut, rule in zip(plan.cuts, plan.rules, strict=True)}
        image = asked["multi_modal_data"]["image"]
        logits = self._model.forward(ids, [image], list(plan.counts), rules, tokens[:-1])
        return lead_lost(logits.log_softmax(-1), tokens)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.right")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--way", action="append", help="only ways whose name contains this")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> tuple[tuple[Way, ...], dict[str, Any], int]:
    """Return the ways, what is asked, and how many engines run at once."""
    if options.dry_run:
        ways = (Way("cpu eager", EAGER, dtype="float32"),)
        setup = {
            "tokens": 2,
            "asked": asked([None, "full", "p-sigmoid-0.25", "fastv-0.25", asker.ADAPTIVE], 1),
            "engine": {"max_num_batched_tokens": 1024, "max_num_seqs": 8},
        }
        return ways, setup, 1
    kept = [way for way in WAYS if any(part in way.name for part in options.way or [""])]
    setup = {
        "tokens": 12,
        "asked": asked([None, "full", *SCHEDULES], QUESTIONS),
        "engine": {"kv_cache_memory_bytes": GIB, "gpu_memory_utilization": 0.05},
    }
    return tuple(kept), setup, ENGINES_AT_ONCE


def main() -> None:
    """Run the stage."""
    report, options = Report("right"), parse()
    ways, setup, at_once = plan(options)
    torch.set_num_threads(2)  # for the reference: the engines' processes are many
    jobs = [
        Job(way, arm) for way in ways for arm in ("vtr", "stock") if arm == "vtr" or not way.like
    ]
    judge = Judge(report, setup)
    with tempfile.TemporaryDirectory() as folder:
        for job in Jobs(jobs, setup, Path(folder), at_once):
            judge.take(job)
    judge.end()


if __name__ == "__main__":
    main()
