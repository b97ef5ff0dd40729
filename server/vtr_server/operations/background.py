"""What runs beside the requests, for as long as the server does."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from vtr_server.operations.metrics import (
    observe_background,
    observe_kv,
    observe_ready,
    observe_workers,
)
from vtr_server.vllm_api.engine import Engine, KVReport
from vtr_vllm.errors import EngineNotReady

__all__ = ["Background", "poll_engine"]

logger = logging.getLogger("vllm.vtr")

SECONDS = 2.0
"""Between two questions to the engine; each takes it well under a millisecond, between two steps."""
SILENT_SECONDS = 60.0
"""An engine that has not answered for so long hangs: no step takes as long."""
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
"""Before a task that failed is started again; doubled each time it fails soon."""


class Background:
    """Tasks that are held, since asyncio itself forgets them, and started again when they fail.

    A failure is logged and counted, and never makes the server unhealthy: requests are answered as
    before, and whoever restarted the server for it would take that away too.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work()`` until it returns or the event loop ends; ``name`` is a label of metrics."""
        observe_background(name, failures=0)
        task = asyncio.create_task(_again_and_again(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _again_and_again(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    wait = FIRST_WAIT_SECONDS
    while True:
        begun = time.monotonic()
        try:
            return await work()
        except Exception as err:
            if time.monotonic() - begun > LONGEST_WAIT_SECONDS:
                wait = FIRST_WAIT_SECONDS
            observe_background(name, failures=1)
            logger.error("VTR: %s failed; again in %g s", name, wait, exc_info=err)
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def poll_engine(engine: Engine, *, told: bool = True) -> None:
    """Ask the engine's processes again and again: whether they answer and, if it is ``told`` by this
    process, what only they know."""
    while True:
        await asyncio.sleep(SECONDS)
        ready = await engine.why_unhealthy() is None
        if told:
            observe_ready(ready)
        if not ready:
            continue
        try:
            report, counts = await _report(engine, told)
        except EngineNotReady:
            continue  # it died in between: the next round says so
        if not told:
            continue
        observe_kv(report.total, report.free, report.held, report.saved)
        observe_workers(
            counts["rank_seconds"],
            counts["gather_seconds"],
            int(counts["reduced_steps"]),
            int(counts["uncompiled_layers"]),
        )


async def _report(engine: Engine, told: bool) -> tuple[KVReport, dict[str, float]]:
    """The engine's report; while it does not come, the engine is not ready."""
    asked = asyncio.ensure_future(engine.report())
    try:
        await asyncio.wait([asked], timeout=SILENT_SECONDS)
        if not asked.done():
            engine.silent_seconds = SILENT_SECONDS
            if told:
                observe_ready(False)
            logger.error("VTR: the engine has answered nothing for %g s", SILENT_SECONDS)
        return await asked
    finally:
        engine.silent_seconds = None
        asked.cancel()
