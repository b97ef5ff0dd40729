"""Where KV is allocated: each band gets, in compact storage, only what its layers keep.

vLLM lets a plugin register a KV-cache spec with a manager of its own
(``vllm.v1.kv_cache_spec_registry``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.reduction.request import ReducedRequest


class BandManager(FullAttentionManager):
    """Gives a reduced request the blocks of what the band keeps; others as in stock vLLM."""

    reduced: Mapping[str, ReducedRequest]
    """By request id; the scheduler's own table, bound after construction."""

    def bind(self, reduced: Mapping[str, ReducedRequest]) -> None:
        self.reduced = reduced

    def stored_tokens(self, request_id: str, num_tokens: int) -> int:
        """Tokens that this band stores once ``num_tokens`` positions are computed."""
        request = self.reduced.get(request_id)
        if request is None:
            return num_tokens
        assert isinstance(self.kv_cache_spec, BandSpec)
        return request.stored_tokens(num_tokens, self.kv_cache_spec.first_layer)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        *args: Any,
        **kwargs: Any,
    ) -> int:
        stored = self.stored_tokens(request_id, num_tokens)
        return super().get_num_blocks_to_allocate(
            request_id, stored, new_computed_blocks, *args, **kwargs
        )

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        stored = self.stored_tokens(request_id, num_tokens)
        return super().allocate_new_blocks(request_id, stored, num_tokens_main_model)

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        reduced = self.reduced.get(request.request_id)
        if reduced is not None:
            # Behind the first vision token the KV depends on the schedule and on the question.
            num_tokens = min(num_tokens, reduced.first_vision)
        super().cache_blocks(request, num_tokens, *args, **kwargs)


def register_band_spec() -> None:
    """Make vLLM know the spec in this process; safe to call again."""
    # vLLM fills its registry on first use and only while it is empty, so its own specs go first.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(BandSpec, BandManager, BandSpec)
