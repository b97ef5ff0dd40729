"""What runs beside the requests, for as long as the server does."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from vtr_server.operations.metrics import observe_kv, observe_ready, observe_workers
from vtr_server.vllm_api.engine import Engine
from vtr_vllm.errors import EngineNotReady

__all__ = ["Background", "poll_engine"]

logger = logging.getLogger("vllm.vtr")

SECONDS = 2.0
"""Between two questions to the engine; each takes it well under a millisecond."""


class Background:
    """Tasks that are held, since asyncio itself forgets them, and whose failure is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run until it ends or the event loop does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (err := task.exception()) is not None:
            logger.error("VTR: %s has stopped", task.get_coro(), exc_info=err)


async def poll_engine(engine: Engine) -> None:
    """Bring what only the engine's processes know into the metrics."""
    while True:
        await asyncio.sleep(SECONDS)
        ready = await engine.why_unhealthy() is None
        observe_ready(ready)
        if not ready:
            continue
        try:
            report, counts = await engine.report()
        except EngineNotReady:
            continue  # it died in between: the next round says so
        observe_kv(report.total, report.free, report.held, report.saved)
        observe_workers(
            counts["rank_seconds"],
            counts["gather_seconds"],
            int(counts["reduced_steps"]),
            int(counts["uncompiled_layers"]),
        )
