"""What a front end asks of the scheduler's process: the KV blocks held and saved; and its greeting.

vLLM's clients call a method of ``EngineCore`` by its name (a "utility"). We give that class two more.
"""

from typing import Any

from vllm.utils.math_utils import cdiv

from vtr_vllm.engine.common.front_end import GREET
from vtr_vllm.engine.common.kv_report import UTILITY


def count_blocks(scheduler: Any) -> dict[str, int]:
    """The fields of a KVReport, for our scheduler; a dictionary, since it crosses processes."""
    pool = scheduler.kv_cache_manager.block_pool
    total = pool.num_gpu_blocks - 1  # one block is vLLM's stand-in for no block
    free = pool.get_num_free_blocks()
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    saved = 0
    for request_id in scheduler.reduced:
        computed = scheduler.requests[request_id].num_computed_tokens
        for manager in managers:
            held = len(manager.req_to_blocks.get(request_id, ()))
            saved += cdiv(computed, manager.block_size) - held
    return {"total": total, "free": free, "held": total - free, "saved": saved}


def install() -> None:
    """Give vLLM's engine core both methods; called in the scheduler's process, again at will."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, UTILITY, lambda core: count_blocks(core.scheduler))
    setattr(EngineCore, GREET, lambda core: core.scheduler.greet())
