"""SIGTERM: answer what is inside, then stop.

vLLM stops its engine first and its HTTP server after, so an answer whose last tokens are still on
their way is lost, and its connection never ends. Here the HTTP side is emptied before the engine
is told anything. vLLM's own hook for that is ``engine_client.shutdown``, which it calls in a
thread once SIGTERM or SIGINT has come.

The same hook tells that the engine has died: vLLM then ends its server with exit status 0, which a
supervisor that restarts on failure takes for the end of the work.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from vtr_server.gate.exchange import GRACE_SECONDS
from vtr_server.gate.middleware import Gate
from vtr_vllm.errors import EngineDead

__all__ = ["drain_first"]


def drain_first(
    engine_client: Any, gate: Gate, stop_jobs: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Make ``engine_client.shutdown(timeout)`` drain the gate for at most ``timeout`` seconds, and end
    the searches of jobs meanwhile.

    Must be called in the event loop that serves. ``timeout`` is vLLM's ``--shutdown-timeout``:
    0, its default, aborts what is in flight. Where the engine has died before it was stopped, the
    call on the server's way out raises EngineDead, and so the process ends with status 1.
    """
    loop = asyncio.get_running_loop()
    stop = engine_client.shutdown
    drained = stopped = died = False

    def shutdown(timeout: float | None = None) -> None:
        nonlocal drained, stopped, died
        if timeout and not drained and not _inside(loop):
            drained = True
            end = time.monotonic() + timeout
            drain = asyncio.run_coroutine_threadsafe(_drain(gate, timeout, stop_jobs), loop)
            drain.result()
            timeout = max(GRACE_SECONDS, end - time.monotonic())
        if not stopped:
            stopped, died = True, engine_client.errored
        stop(timeout=timeout)
        if died and _inside(loop):
            died = False  # said once: vLLM calls once more when it forgets the client
            raise EngineDead("the engine has died; start the server again")

    engine_client.shutdown = shutdown


async def _drain(
    gate: Gate, timeout: float, stop_jobs: Callable[[], Awaitable[None]] | None
) -> None:
    stopping = [] if stop_jobs is None else [asyncio.ensure_future(stop_jobs())]
    end = time.monotonic() + timeout
    await gate.drain(timeout)
    if stopping:  # what is not done by then ends with the process
        await asyncio.wait(stopping, timeout=max(0, end - time.monotonic()))


def _inside(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the thread of ``loop``, which must not wait for itself."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return not loop.is_running()
