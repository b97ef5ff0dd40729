"""What the front end asks, through vLLM's own clients: in process, across processes, of several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.scheduler.test_scheduler import generate, reduced
from tests.vtr_vllm.engine.support import BLOCK, words
from vtr_vllm.engine.frontend.engine_queries import counters, greet, kv_report, take_trace
from vtr_vllm.engine.frontend.load_logger import LOAD
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.errors import EngineNotReady

TEXT = f"{words(1, 30)}<image>{words(2, 9)}"


@pytest.mark.engine
def test_an_engine_in_this_process(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    before = asyncio.run(counters(llm.llm_engine))
    generate(llm, [replace(reduced(TEXT, 1), trace="mine")], 2)
    after = asyncio.run(counters(llm.llm_engine))
    assert after["reduced_steps"] == before["reduced_steps"] + 1
    assert after["uncompiled_layers"] == 0
    trace = asyncio.run(take_trace(llm.llm_engine, "mine"))
    assert trace is not None
    assert [(layer, len(kept)) for layer, kept in trace] == [(2, 16), (4, 8), (6, 0)]
    assert asyncio.run(take_trace(llm.llm_engine, "mine")) is None
    found = asyncio.run(kv_report(llm.llm_engine))
    assert found.total == found.free > 0


@asynccontextmanager
async def serving(checkpoint: Path, data_parallel: int) -> AsyncIterator[AsyncLLM]:
    """What a server has: engines in processes of their own."""
    arguments = AsyncEngineArgs(
        model=str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        block_size=BLOCK,
        max_model_len=512,
        max_num_seqs=8,
        worker_cls=WORKER_CLS,
        scheduler_cls=SCHEDULER_CLS,
        data_parallel_size=data_parallel,
        additional_config={"vtr": {"settings": "settings.toml"}},  # nothing runs without a greeting
    )
    engine = AsyncLLM.from_engine_args(arguments)
    try:
        yield engine
    finally:
        engine.shutdown()


async def run_one(engine: AsyncLLM, name: str, max_tokens: int = 2) -> None:
    case = replace(reduced(TEXT, 1), trace=name)
    async for _ in engine.generate(case.prompt, case.params(max_tokens), name):
        pass


async def seen(ask: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    """Ask until what runs meanwhile makes it true; the test's own limit ends a hopeless wait."""
    while not wanted(found := await ask()):
        await asyncio.sleep(0.01)
    return found


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_engines_in_other_processes(count: int, engines: Engines, checkpoint: Path) -> None:
    engines.close()

    async def check() -> None:
        async with serving(checkpoint, count) as engine:
            assert engine.logger_manager is not None
            kinds = [type(logger).__name__ for logger in engine.logger_manager.stat_loggers]
            assert {"LoadLogger", "PrometheusStatLogger"} <= set(kinds)
            idle = await kv_report(engine)
            assert idle.total == idle.free > 0
            await greet(engine)
            names = [f"trace {i}" for i in range(4)]
            running = [asyncio.create_task(run_one(engine, name, 200)) for name in names]
            busy = await seen(lambda: kv_report(engine), lambda found: found.saved > 0)
            assert busy.total == idle.total == busy.free + busy.held
            await seen(lambda: asyncio.sleep(0, LOAD.running), lambda found: found == 4)
            assert 0 < LOAD.kv_usage <= 1
            await asyncio.gather(*running)
            traces = [await take_trace(engine, name) for name in names]
            assert [[layer for layer, _ in trace] for trace in traces if trace] == [[2, 4, 6]] * 4
            assert all(trace == traces[0] for trace in traces), "the same prompt"
            assert await take_trace(engine, names[0]) is None
            found = await counters(engine)
            assert count <= found["reduced_steps"] <= 4
            assert found["rank_seconds"] > 0
            await seen(lambda: kv_report(engine), lambda found: found == idle)
            await seen(lambda: asyncio.sleep(0, LOAD.running), lambda found: found == 0)
            assert len(LOAD.first_tokens) >= 4

    asyncio.run(check())


def client(answer: Callable[..., Awaitable[Any]]) -> Any:
    """A client whose engines answer so; a real one that is dead takes a minute to make."""
    return SimpleNamespace(engine_core=SimpleNamespace(call_utility_all_async=answer))


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (EngineDeadError(), "is dead .* restart the server"),
        (Exception("no attribute 'vtr_kv_report'"), "vtr_kv_report.* `vtr serve`"),
    ],
)
def test_an_engine_that_cannot_answer_is_not_ready(failure: Exception, said: str) -> None:
    async def fail(*arguments: Any) -> Any:
        raise failure

    with pytest.raises(EngineNotReady, match=said):
        asyncio.run(kv_report(client(fail)))


def test_answers_of_several_engines_and_workers() -> None:
    """Engines add up; the workers of one engine did the same work side by side."""
    workers = {"rank_seconds": 1.0, "gather_seconds": 0.5, "reduced_steps": 3}

    async def answer(method: str, rpc: str, timeout: None, arguments: tuple[Any, ...]) -> Any:
        assert method == "collective_rpc"
        if rpc == "vtr_counters":
            return [[workers, workers], [workers, workers]]
        return [[None, None], [[[2, [1, 5]]], [[2, [1, 5]]]]]

    assert asyncio.run(counters(client(answer))) == {
        "rank_seconds": 2.0,
        "gather_seconds": 1.0,
        "reduced_steps": 6,
    }
    assert asyncio.run(take_trace(client(answer), "any")) == [(2, [1, 5])]
