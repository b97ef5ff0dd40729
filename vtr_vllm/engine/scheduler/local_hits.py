"""What the prefix cache has of a local request: the last position that the blocks of every band reach.

Every band holds another share of the prompt in blocks, so where one band's block ends is inside of
another's: a hit ends in the midst of blocks. Of each such block vLLM makes the request a copy.
"""

from collections.abc import Sequence
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock
from vllm.v1.request import Request

from vtr_vllm.engine.scheduler.block_names import BlockNames
from vtr_vllm.engine.scheduler.kv_bands import BandManager
from vtr_vllm.reduction.request import ReducedRequest


def longest_hit(
    names: BlockNames, most: int, bands: Sequence[BandManager]
) -> tuple[dict[int, list[KVCacheBlock]], int]:
    """Of a local request: (by KV-cache group the cached blocks of each band, positions that they reach).

    At most ``most`` positions: the last one, inside of no image, that the blocks of every band reach.
    """
    request = names.reduced
    reached = most
    if request.trace is not None:  # who asks which tokens stay has the images run again
        reached = min(reached, names.before_vision)
    of_bands = []
    for band in bands:
        held, reached = band.held_for(names, reached)
        of_bands.append((band, held))
    reached = _copied_from_what_is_there(request, reached, of_bands)
    names.marked = reached
    stored = [request.stored_tokens(reached, band.first_layer) for band in bands]
    return {
        band.kv_cache_group_id: held[: cdiv(count, band.block_size)]
        for (band, held), count in zip(of_bands, stored, strict=True)
    }, reached


def _copied_from_what_is_there(
    request: ReducedRequest,
    reached: int,
    of_bands: Sequence[tuple[BandManager, Sequence[KVCacheBlock]]],
) -> int:
    """The positions up to ``reached`` that can be taken in this step.

    A step runs its copies first. So no block is copied that the same step computes: whole blocks of it
    are shared, as in vLLM, since a layer stores keys and values of all rows before any of them attends.
    """
    lowered = True
    while lowered:
        lowered = False
        for band, held in of_bands:
            number, rest = divmod(request.stored_tokens(reached, band.first_layer), band.block_size)
            if rest and held[number].block_id in band.fresh:
                whole = request.reached_with(number * band.block_size, band.first_layer)
                reached, lowered = min(reached, whole), True
    return reached


def follow_local_requests(coordinator: Any, bands: Sequence[BandManager]) -> None:
    """Have vLLM's coordinator find and register the blocks of local requests by their names."""
    find, cache = coordinator.find_longest_cache_hit, coordinator.cache_blocks
    emit = coordinator.emit_cached_block_events

    def find_longest_cache_hit(
        block_hashes: Sequence[BlockHash], max_cache_hit_length: int
    ) -> tuple[tuple[list[KVCacheBlock], ...], int, int]:
        if not isinstance(block_hashes, BlockNames):
            return find(block_hashes, max_cache_hit_length)
        held, reached = longest_hit(block_hashes, max_cache_hit_length, bands)
        groups = range(len(coordinator.single_type_managers))
        return tuple(held.get(group, []) for group in groups), reached, 0

    def cache_blocks(request: Request, num_computed_tokens: int) -> None:
        cache(request, num_computed_tokens)
        names = request.block_hashes
        if isinstance(names, BlockNames):
            # Before the first vision token, vLLM's own blocks are enough.
            marks = names.marks(max(names.marked, names.reduced.first_vision), num_computed_tokens)
            names.marked = num_computed_tokens
            for band in bands:
                band.cache_local_blocks(names, request.request_id, num_computed_tokens, marks)

    def emit_cached_block_events(
        request: Request, computed_blocks: tuple[list[KVCacheBlock], ...]
    ) -> None:
        names = request.block_hashes
        if isinstance(names, BlockNames):  # reduced KV is announced to nobody
            computed_blocks = tuple(
                held[: names.before_vision // manager.block_size]
                for held, manager in zip(
                    computed_blocks, coordinator.single_type_managers, strict=True
                )
            )
        emit(request, computed_blocks)

    coordinator.emit_cached_block_events = emit_cached_block_events
    coordinator.find_longest_cache_hit = find_longest_cache_hit
    coordinator.cache_blocks = cache_blocks
