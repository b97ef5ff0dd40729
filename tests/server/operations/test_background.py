"""What runs beside the requests."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from vtr_server.operations import background
from vtr_server.operations.background import Background, poll_engine
from vtr_vllm.engine.common.kv_report import KVReport
from vtr_vllm.errors import EngineNotReady


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", 0.0)


def test_a_task_is_held_while_it_runs_and_let_go_after() -> None:
    async def run() -> list[str]:
        held, done = Background(), []

        async def work() -> None:
            await asyncio.sleep(0)
            gc.collect()
            done.append("work")

        held.start("work", work)
        assert len(held._tasks) == 1
        for _ in range(5):
            await asyncio.sleep(0)
        assert not held._tasks
        return done

    assert asyncio.run(run()) == ["work"]


def test_a_task_that_fails_is_said_counted_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = []

    async def watches() -> None:
        rounds.append("begun")
        if len(rounds) < 3:
            raise ValueError(f"reason {len(rounds)}")

    async def waits() -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        held = Background()
        held.start("watches", watches)
        held.start("waits", waits)  # cancelled at the end of the loop: nothing to say
        while len(rounds) < 3:
            await asyncio.sleep(0)

    logger = logging.getLogger("vllm.vtr")
    logger.addHandler(caplog.handler)
    try:
        asyncio.run(run())
    finally:
        logger.removeHandler(caplog.handler)
    records = list(
        {record.getMessage() + str(record.exc_info): record for record in caplog.records}.values()
    )
    assert [str(record.exc_info and record.exc_info[1]) for record in records] == [
        "reason 1",
        "reason 2",
    ]
    assert all("watches" in record.getMessage() for record in records)
    assert value("vtr_background_failures_total", task="watches") == 2
    assert value("vtr_background_failures_total", task="waits") == 0


def test_a_task_that_fails_again_and_again_is_started_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            raise asyncio.CancelledError

    async def fails() -> None:
        raise OSError("no")

    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(background.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(background._again_and_again("fails", fails))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@dataclass
class Engine:
    """The engine's answers, one per round; a string is why it is unhealthy."""

    rounds: list[str | KVReport | EngineNotReady]
    asked: list[str] = field(default_factory=list)
    silent_seconds: float | None = None

    async def why_unhealthy(self) -> str | None:
        if not self.rounds:
            raise asyncio.CancelledError
        self.asked.append("health")
        if isinstance(self.rounds[0], str):
            return str(self.rounds.pop(0))
        return None

    async def report(self) -> tuple[KVReport, dict[str, float]]:
        self.asked.append("report")
        found = self.rounds.pop(0)
        if isinstance(found, EngineNotReady):
            raise found
        assert isinstance(found, KVReport)
        return found, {
            "rank_seconds": 0.5,
            "gather_seconds": 0.25,
            "reduced_steps": 3.0,
            "uncompiled_layers": 0.0,
        }


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def poll(monkeypatch: pytest.MonkeyPatch, *rounds: str | KVReport | EngineNotReady) -> list[str]:
    monkeypatch.setattr(background, "SECONDS", 0)
    engine = Engine(list(rounds))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(poll_engine(engine))  # type: ignore[arg-type]
    return engine.asked


def test_the_engines_counts_become_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    poll(monkeypatch, KVReport(total=10, free=7, held=3, saved=2))
    found = {state: value("vtr_kv_blocks", state=state) for state in ("total", "held", "saved")}
    assert found == {"total": 10, "held": 3, "saved": 2}
    assert value("vtr_ready") == 1


def test_an_engine_that_is_not_ready_is_not_asked_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert poll(monkeypatch, "dead", "dead") == ["health", "health"]
    assert value("vtr_ready") == 0


def test_an_engine_that_dies_in_between_does_not_end_the_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = poll(monkeypatch, EngineNotReady("gone"), KVReport(9, 9, 0, 0))
    assert asked == ["health", "report"] * 2
    assert value("vtr_kv_blocks", state="total") == 9


def test_an_engine_that_answers_nothing_is_not_ready_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's own check looks for an error, and a hang is none."""
    seen = []

    class Hanging(Engine):
        async def report(self) -> tuple[KVReport, dict[str, float]]:
            if len(self.rounds) == 2:
                while self.silent_seconds is None:
                    await asyncio.sleep(0.01)
                seen.append((self.silent_seconds, value("vtr_ready")))
            return await super().report()

    monkeypatch.setattr(background, "SECONDS", 0)
    monkeypatch.setattr(background, "SILENT_SECONDS", 0.05)
    engine = Hanging([KVReport(9, 9, 0, 0), KVReport(8, 8, 0, 0)])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(poll_engine(engine), 60))  # type: ignore[arg-type]
    assert seen == [(0.05, 0)]
    assert engine.silent_seconds is None
    assert value("vtr_ready") == 1


def test_what_is_told_by_another_process_is_only_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    poll(monkeypatch, KVReport(7, 7, 0, 0))
    monkeypatch.setattr(background, "SECONDS", 0)
    engine = Engine([KVReport(5, 5, 0, 0)])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(poll_engine(engine, told=False))  # type: ignore[arg-type]
    assert value("vtr_kv_blocks", state="total") == 7
