"""What is counted of ranking and gathering, and that nothing waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.scheduler.test_scheduler import generate, reduced
from tests.vtr_vllm.engine.support import Case, picture, words
from vtr_vllm.engine.frontend.engine_queries import counters
from vtr_vllm.engine.worker.timing import Timing

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Event:
    """An event whose passing the test decides; it knows no way to wait."""

    passed = 0
    made: list[Event] = []  # noqa: RUF012

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.made.append(self)

    def record(self) -> None:
        self.place = Event.recorded = getattr(Event, "recorded", 0) + 1

    def query(self) -> bool:
        return self.place <= Event.passed

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query()
        return 1000.0 * (end.place - self.place)


def one_step(timing: Timing, device: torch.device) -> None:
    timing.begin_step(device)
    for part in ("rank", "gather", "gather"):
        with timing.spent(part):
            pass


def test_on_the_cpu_time_is_there_at_once() -> None:
    timing = Timing()
    assert timing.counters() == {"rank_seconds": 0.0, "gather_seconds": 0.0, "reduced_steps": 0}
    one_step(timing, CPU)
    found = timing.counters()
    assert found["reduced_steps"] == 1
    assert found["rank_seconds"] > 0
    assert found["gather_seconds"] > 0
    one_step(timing, CPU)
    assert all(timing.counters()[name] > value for name, value in found.items())


def test_on_a_gpu_only_what_has_passed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timing = Timing()
    one_step(timing, GPU)
    assert timing.counters() == {"rank_seconds": 0.0, "gather_seconds": 0.0, "reduced_steps": 1}
    Event.passed = 3  # rank ended; the first gather began
    assert timing.counters() == {"rank_seconds": 1.0, "gather_seconds": 0.0, "reduced_steps": 1}
    Event.passed = 6
    one_step(timing, GPU)
    assert timing.counters() == {"rank_seconds": 1.0, "gather_seconds": 2.0, "reduced_steps": 2}
    for _ in range(50):
        Event.passed = Event.recorded
        one_step(timing, GPU)
    assert len(Event.made) <= 12, "events are used again"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for() -> None:
    timing = Timing()
    work = torch.randn(2048, 2048, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        timing.begin_step(GPU)
        with timing.spent("rank"):
            work = work @ work
        timing.counters()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert timing.counters()["rank_seconds"] > 0


@pytest.mark.engine
@pytest.mark.both_runners
def test_steps_that_drop_tokens_are_counted(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)

    def added(cases: list[Case]) -> dict[str, Any]:
        before = asyncio.run(counters(llm.llm_engine))
        generate(llm, cases, 4)
        after = asyncio.run(counters(llm.llm_engine))
        return {name: after[name] - before[name] for name in after}

    text = f"{words(1, 30)}<image>{words(2, 9)}"
    quarter = added([reduced(text, 1), reduced(text, 2)])
    assert quarter["reduced_steps"] in (1, 2), "prefills only, which may share a step"
    assert quarter["rank_seconds"] > 0
    assert quarter["gather_seconds"] > 0
    full = added([Case(text, (picture(1),)), Case(words(7, 60))])
    assert full == {
        "rank_seconds": 0,
        "gather_seconds": 0,
        "reduced_steps": 0,
        "uncompiled_layers": 0,
    }
