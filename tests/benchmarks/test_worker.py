"""What the arms' engines are stepped with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.worker import Machine, step_until_decoding


class Engine:
    """An engine that computes four tokens a step; the second request waits for the first one's place."""

    def __init__(self) -> None:
        requests = [SimpleNamespace(num_computed_tokens=0, num_prompt_tokens=n) for n in (10, 4)]
        self.scheduler = SimpleNamespace(waiting=requests[1:], running=requests[:1])
        self.engine_core = SimpleNamespace(engine_core=self)
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        for request in self.scheduler.running:
            request.num_computed_tokens += 4
        if self.steps == 3:
            self.scheduler.running += self.scheduler.waiting
            self.scheduler.waiting = []


def test_all_prompts_are_computed_before_decode_steps_are_timed() -> None:
    engine = Engine()
    step_until_decoding(engine)
    assert engine.steps == 4
    step_until_decoding(engine)
    assert engine.steps == 4


def test_what_is_measured_with_this_process_is_nothing_foreign() -> None:
    spent = iter([5.0, 1005.0])
    found = Machine(lambda: next(spent)).facts()
    assert found["cpu_s"] == pytest.approx(1000, abs=10)
    assert found["foreign_cores"] == 0
