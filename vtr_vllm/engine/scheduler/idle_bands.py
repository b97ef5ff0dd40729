"""Up to where the bands of a running request have nothing to do, so that most steps ask none of them.

vLLM asks the manager of every KV-cache group four times a step for each running request. Bands are
several groups, and nearly always the answer is nothing: it changes where a block is full, and these
positions are known beforehand.
"""

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request

from vtr_vllm.engine.scheduler.block_names import BlockNames
from vtr_vllm.engine.scheduler.kv_bands import NEVER, BandManager


def skip_idle_bands(manager: KVCacheManager, bands: Sequence[BandManager]) -> None:
    """Have ``manager`` ask its bands only at positions where one of them may need or register a block.

    Where the model has other KV-cache groups too, all are asked as ever.
    """
    coordinator = manager.coordinator
    if not bands or len(bands) < len(coordinator.single_type_managers):
        return
    allocate, cache = manager.allocate_slots, coordinator.cache_blocks
    room, unnamed = bands[0].idle.room, bands[0].idle.unnamed

    def allocate_slots(
        request: Request, num_new_tokens: int, *args: Any, num_lookahead_tokens: int = 0, **kw: Any
    ) -> KVCacheBlocks | None:
        name, end = request.request_id, request.num_computed_tokens + num_new_tokens
        # of a request that was running, vLLM says no more than this
        if not args and not kw and end + num_lookahead_tokens <= room.get(name, 0):
            coordinator.cache_blocks(request, min(end, request.num_tokens))
            return manager.empty_kv_cache_blocks
        found = allocate(
            request, num_new_tokens, *args, num_lookahead_tokens=num_lookahead_tokens, **kw
        )
        if found is not None:
            room[name] = min(band.room(name) for band in bands)
        return found

    def cache_blocks(request: Request, num_computed_tokens: int) -> None:
        if num_computed_tokens < unnamed.get(request.request_id, 0):
            return
        cache(request, num_computed_tokens)
        unnamed[request.request_id] = _next_name(request, bands)

    manager.allocate_slots = allocate_slots
    coordinator.cache_blocks = cache_blocks


def _next_name(request: Request, bands: Sequence[BandManager]) -> int:
    """The first position at which a band has another block to register; 0: it may be any."""
    if not bands[0].enable_caching:
        return NEVER
    first = min(band.next_full(request.request_id) for band in bands)
    names = request.block_hashes
    return min(first, names.next_mark(names.marked)) if isinstance(names, BlockNames) else first
