"""What the front end asks its engines: KV blocks, time spent, traces.

``client`` is vLLM's ``AsyncLLM``, or the ``LLMEngine`` of an ``LLM``. With data parallelism every
engine is asked; with tensor parallelism its first worker answers for all, who agree.
"""

from typing import Any

from vllm.v1.engine.core_client import InprocClient, SyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError

from vtr_vllm.engine.common.front_end import GREET
from vtr_vllm.engine.common.kv_report import UTILITY, KVReport
from vtr_vllm.engine.common.request_view import TraceCuts
from vtr_vllm.errors import EngineDead, EngineNotReady


async def greet(client: Any) -> None:
    """Tell all engines that this front end holds the settings; raises EngineNotReady."""
    await _ask(client, GREET)


async def kv_report(client: Any) -> KVReport:
    """KV blocks of all engines; raises EngineNotReady."""
    reports = await _ask(client, UTILITY)
    return sum((KVReport(**found) for found in reports), KVReport(0, 0, 0, 0))


async def counters(client: Any) -> dict[str, float]:
    """``rank_seconds``, ``gather_seconds``, ``reduced_steps``, ``uncompiled_layers`` of all engines
    since they started.

    Raises EngineNotReady.
    """
    answers = await _ask_workers(client, "vtr_counters")
    return {name: sum(answer[name] for answer in answers) for name in answers[0]}


async def take_trace(client: Any, name: str) -> TraceCuts | None:
    """The cuts of the request that ran with ``vtr_trace`` NAME, once; None when there is none.

    A full-budget request leaves none, nor one with more than ``MAX_TRACE_TOKENS`` vision tokens,
    nor one that ``MAX_TRACES`` later ones followed. Raises EngineNotReady.
    """
    answers = await _ask_workers(client, "vtr_take_trace", name)
    found = next((answer for answer in answers if answer is not None), None)
    return None if found is None else [(layer, list(kept)) for layer, kept in found]


async def _ask_workers(client: Any, method: str, *arguments: Any) -> list[Any]:
    """The answer of each engine's first worker."""
    return [workers[0] for workers in await _ask(client, "collective_rpc", method, None, arguments)]


async def _ask(client: Any, method: str, *arguments: Any) -> list[Any]:
    """The answer of each engine."""
    core = client.engine_core
    try:
        if isinstance(core, InprocClient):
            return [getattr(core.engine_core, method)(*arguments)]
        if isinstance(core, SyncMPClient):
            return [core.call_utility(method, *arguments)]
        answers: list[Any] = await core.call_utility_all_async(method, *arguments)
    except EngineDeadError as err:
        raise EngineDead(f"the engine is dead ({err}); restart the server") from err
    except Exception as err:  # a failed utility arrives as a bare Exception
        raise EngineNotReady(
            f"the engine does not answer {method} ({err}); start it with `vtr serve`, or with"
            " --scheduler-cls and --worker-cls of VTR"
        ) from err
    return answers
