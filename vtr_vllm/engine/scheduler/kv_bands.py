"""Where KV is allocated: each band gets, in compact storage, only what its layers keep.

vLLM lets a plugin register a KV-cache spec with a manager of its own
(``vllm.v1.kv_cache_spec_registry``).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    BlockHashWithGroupId,
    KVCacheBlock,
    make_block_hash_with_group_id,
)
from vllm.v1.core.single_type_kv_cache_manager import (
    FullAttentionManager,
)
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.scheduler.block_names import BlockNames
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.request import ReducedRequest

NEVER = sys.maxsize
"""A position that no request reaches."""


@dataclass
class Idle:
    """By running request, for how long none of its bands has anything to do (``idle_bands``)."""

    room: dict[str, int] = field(default_factory=dict)
    """Positions that the blocks of every band hold."""
    unnamed: dict[str, int] = field(default_factory=dict)
    """The first position at which a band has another block to register."""


class BandManager(FullAttentionManager):
    """Gives a reduced request the blocks of what the band keeps; others as in stock vLLM."""

    reduced: Mapping[str, ReducedRequest]
    """By request id."""
    bands: Sequence["BandManager"]
    """The managers of all bands, this one included."""
    first_layer: int
    """What it keeps is what the band stores."""
    idle: Idle
    """Of all bands together."""
    untold: set[BlockHashWithGroupId]
    """Names of ours that blocks of any band have, where events tell of blocks."""
    fresh: set[int]
    """Blocks that were named in this step: what they hold is computed when it runs."""

    def bind(
        self,
        reduced: Mapping[str, ReducedRequest],
        bands: Sequence["BandManager"],
        idle: Idle,
        untold: set[BlockHashWithGroupId],
    ) -> None:
        assert isinstance(self.kv_cache_spec, BandSpec)
        self.reduced = reduced
        self.bands = bands
        self.idle = idle
        self.untold = untold
        self.first_layer = self.kv_cache_spec.first_layer
        self.fresh = set()

    def new_step_starts(self) -> None:
        super().new_step_starts()
        self.fresh.clear()

    def stored_tokens(self, request_id: str, num_tokens: int) -> int:
        """Tokens that this band stores once ``num_tokens`` positions are computed."""
        request = self.reduced.get(request_id)
        return (
            num_tokens if request is None else request.stored_tokens(num_tokens, self.first_layer)
        )

    def room(self, request_id: str) -> int:
        """Positions of the request that its blocks hold."""
        stored = len(self.req_to_blocks[request_id]) * self.block_size
        request = self.reduced.get(request_id)
        return stored if request is None else request.reached_with(stored, self.first_layer)

    def next_full(self, request_id: str) -> int:
        """The first position at which another block of the request is to be registered; 0: it may be any."""
        if self.block_size != self.block_pool.hash_block_size:
            return 0
        stored = (self.num_cached_block.get(request_id, 0) + 1) * self.block_size
        request = self.reduced.get(request_id)
        if request is None:
            return stored
        if request.is_local:
            return request.filled_at(stored, self.first_layer)
        return stored if stored <= request.first_vision else NEVER

    def _has_room(self, request_id: str, stored: int) -> bool:
        """Whether the request's blocks hold ``stored`` tokens.

        The three methods below are asked of each band where one of them has something to do. Where
        vLLM's would come to nothing in the end, they say so at once.
        """
        held = self.req_to_blocks.get(request_id)
        return held is not None and stored <= len(held) * self.block_size

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        stored = self.stored_tokens(request_id, num_tokens)
        if request_id in self.num_cached_block and self._has_room(request_id, stored):
            return 0  # of a running request
        return super().get_num_blocks_to_allocate(
            request_id,
            stored,
            new_computed_blocks,
            self.stored_tokens(request_id, total_computed_tokens),
            self.stored_tokens(request_id, num_local_computed_tokens),
            *args,
            **kwargs,
        )

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        # Where a hit ends inside of the band's last block, vLLM gives the request a copy of that.
        super().add_local_computed_blocks(
            request_id,
            new_computed_blocks,
            self.stored_tokens(request_id, num_local_computed_tokens),
            num_external_computed_tokens,
        )

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        stored = self.stored_tokens(request_id, num_tokens)
        if self._has_room(request_id, stored) and request_id not in self._partial_hit_reqs:
            return []
        return super().allocate_new_blocks(request_id, stored, num_tokens_main_model)

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        reduced = self.reduced.get(request.request_id)
        if reduced is not None:
            # Behind the first vision token the KV depends on the schedule: of a local request,
            # ``cache_local_blocks`` has names for it; of others, it depends on the question too.
            num_tokens = min(num_tokens, reduced.first_vision)
        cached = self.num_cached_block.get(request.request_id, 0)
        whole = self.block_size == self.block_pool.hash_block_size
        if whole and num_tokens // self.block_size <= cached:
            return
        super().cache_blocks(request, num_tokens, *args, **kwargs)

    def cache_local_blocks(
        self, names: BlockNames, request_id: str, num_tokens: int, marks: Sequence[int]
    ) -> None:
        """Register a local request's blocks once ``num_tokens`` positions are computed: those that are
        full, and the last ones at ``marks``.

        No event tells of blocks with names of ours: no tokens could be told that they hold.
        """
        full = self.stored_tokens(request_id, num_tokens) // self.block_size
        cached = self.num_cached_block.get(request_id, 0)
        for number in range(cached, full):
            name = names.name(number, self.first_layer, self.block_size)
            assert name is not None, "computed tokens are known"
            reached = names.reduced.reached_with((number + 1) * self.block_size, self.first_layer)
            self._register(name, request_id, number, min(reached, num_tokens))
        self.num_cached_block[request_id] = max(cached, full)
        for position in marks:
            number, rest = divmod(self.stored_tokens(request_id, position), self.block_size)
            if rest:
                self._register(names.name_at(position, number), request_id, number, position)

    def _register(self, name: BlockHash, request_id: str, number: int, position: int) -> None:
        """``position``: of the prompt, up to which the band is stored with this block."""
        block = self.req_to_blocks[request_id][number]
        self.fresh.add(block.block_id)
        own = make_block_hash_with_group_id(name, self.kv_cache_group_id)
        if self.block_pool.enable_kv_cache_events:
            self.untold.add(own)
        self.block_pool._insert_block_hash(own, block, num_tokens=position)

    def held_for(self, names: BlockNames, most: int) -> tuple[list[KVCacheBlock], int]:
        """(cached blocks of a local request from its first on, positions up to ``most`` that they reach)."""
        request, layer = names.reduced, self.first_layer
        held: list[KVCacheBlock] = []
        needed = cdiv(request.stored_tokens(most, layer), self.block_size)
        while len(held) < needed:
            block = self._found(names.name(len(held), layer, self.block_size))
            if block is None:
                break
            held.append(block)
        full = len(held) * self.block_size
        reached = min(most, request.reached_with(full, layer))
        further = min(most, request.reached_with(full + self.block_size - 1, layer))
        for position in names.marks(reached, further):
            if request.stored_tokens(position, layer) == full:
                return held, position
            block = self._found(names.name_at(position, len(held)))
            if block is not None:
                return [*held, block], position
        return held, reached

    def _found(self, name: BlockHash | None) -> KVCacheBlock | None:
        found = name and self.block_pool.get_cached_block(name, [self.kv_cache_group_id])
        return found[0] if found else None

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """The request's blocks in all bands, by position; whichever band is asked first has them.

        vLLM frees group by group, and evicts in the order in which it freed. A hit needs a block of
        every group, so an eviction that takes one group's head first leaves the others' blocks of
        no use. In order of position the tail goes first in every band, as in a model of one group.
        """
        self.idle.room.pop(request_id, None)
        self.idle.unnamed.pop(request_id, None)
        of_bands = [super(BandManager, band).pop_blocks_for_free(request_id) for band in self.bands]
        return [
            block for position in zip_longest(*of_bands) for block in position if block is not None
        ]


def bind_bands(
    coordinator: KVCacheCoordinator, reduced: Mapping[str, ReducedRequest]
) -> Sequence[BandManager]:
    """Let the managers of all bands know each other, and ``reduced``: the reduced requests by id.

    Returns them. Raises ConfigurationError where vLLM manages bands as ordinary groups.
    """
    managers = coordinator.single_type_managers
    banded = [manager for manager in managers if isinstance(manager.kv_cache_spec, BandSpec)]
    bands = [manager for manager in banded if isinstance(manager, BandManager)]
    if len(bands) < len(banded):
        raise ConfigurationError(
            "the scheduler's process did not load VTR's plugin, so vLLM manages its"
            " KV bands as ordinary groups; name vtr in VLLM_PLUGINS, or unset it"
        )
    idle, untold = Idle(), set[BlockHashWithGroupId]()
    for band in bands:
        band.bind(reduced, bands, idle, untold)
    if bands and bands[0].block_pool.enable_kv_cache_events:
        _tell_nothing_of(untold, bands[0].block_pool)
    return bands


def _tell_nothing_of(untold: set[BlockHashWithGroupId], pool: BlockPool) -> None:
    """Who was never told that a block is stored is not told either that it went."""
    emit = pool._emit_block_removed_events

    def emit_others(block_hashes: list[BlockHashWithGroupId]) -> None:
        emit([known for known in block_hashes if known not in untold])
        untold.difference_update(block_hashes)

    pool._emit_block_removed_events = emit_others


def register_band_spec() -> None:
    """Make vLLM know the spec in this process; safe to call again."""
    # vLLM fills its registry on first use and only while it is empty, so its own specs go first.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(BandSpec, BandManager, BandSpec)
