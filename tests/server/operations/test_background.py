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


def test_a_task_is_held_while_it_runs_and_let_go_after() -> None:
    async def run() -> list[str]:
        held, done = Background(), []

        async def work() -> None:
            await asyncio.sleep(0)
            gc.collect()
            done.append("work")

        held.start(work())
        assert len(held._tasks) == 1
        for _ in range(5):
            await asyncio.sleep(0)
        assert not held._tasks
        return done

    assert asyncio.run(run()) == ["work"]


def test_a_task_that_fails_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def watches() -> None:
        raise ValueError("the reason")

    async def waits() -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        held = Background()
        held.start(watches())
        held.start(waits())  # cancelled at the end of the loop: nothing to say
        for _ in range(5):
            await asyncio.sleep(0)

    logger = logging.getLogger("vllm.vtr")
    logger.addHandler(caplog.handler)
    try:
        asyncio.run(run())
    finally:
        logger.removeHandler(caplog.handler)
    [record] = {record.getMessage(): record for record in caplog.records}.values()
    assert "watches" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the reason"


@dataclass
class Engine:
    """The engine's answers, one per round; a string is why it is unhealthy."""

    rounds: list[str | KVReport | EngineNotReady]
    asked: list[str] = field(default_factory=list)

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
