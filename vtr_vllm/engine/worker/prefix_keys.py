"""Reads back the keys of a cached prefix, so that a warm prefix cache ranks as a cold one.

How a backend lays out keys inside a block is its own business: the CPU's ``vec`` kernels keep
them transposed, AMX packs them in pairs. We learn the layout once, at start-up, from what the
backend writes: known keys go into the null block, and we look where each number landed.

An fp8 cache rounds keys, each backend in its own way. The attention of a step reads its own keys
from there too, and so must a ranking: then it does not matter which step wrote a key.
"""

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform

from vtr_vllm.engine.common.config import FP8_DTYPES
from vtr_vllm.errors import ConfigurationError

_NULL_BLOCK = 0
_BASE = 8
"""Numbers up to it are exact in every floating-point type that vLLM stores keys in."""


class PrefixKeys:
    """Where the key of (token in block, head, dimension) lies inside one block of a layer."""

    def __init__(self, attention: Attention, block_size: int) -> None:
        self._shape = (block_size, attention.num_kv_heads, attention.head_size)
        self.block_size = block_size
        self._fp8 = _fp8(attention)
        self.rounds = self._fp8 is not None
        """Whether what is read differs from what was written."""
        count = block_size * attention.num_kv_heads * attention.head_size
        # Each element's number, written as digits: one probe a digit.
        found = 1
        number = torch.arange(count)
        block = attention.kv_cache[_NULL_BLOCK]
        place = torch.zeros(block.numel(), dtype=torch.int64)
        marked = torch.ones(block.numel(), dtype=torch.bool)
        while found < count:
            digit = (number // found) % _BASE
            raw = self._probe(attention, (digit + 1).view(self._shape))
            place += (raw - 1).clamp(min=0) * found
            marked &= raw > 0
            found *= _BASE
        self._probe(attention, torch.zeros(self._shape, dtype=torch.int64))
        offsets = marked.nonzero().squeeze(1)
        if len(offsets) != count or not torch.equal(place[offsets].sort().values, number):
            raise ConfigurationError(
                f"keys cannot be read back from the KV cache of backend"
                f" {attention.attn_backend.get_name()} (block {tuple(block.shape)},"
                f" {attention.kv_cache_dtype}): it does not store them as they are; choose another"
                " --attention-backend or --kv-cache-dtype"
            )
        self._offsets = torch.empty(count, dtype=torch.int64)
        self._offsets[place[offsets]] = offsets
        self._offsets = self._offsets.to(attention.kv_cache.device)

    def read(self, attention: Attention, blocks: torch.Tensor, count: int) -> torch.Tensor:
        """The first ``count`` keys, [count, kv_heads, head_dim], of a block table row."""
        num_blocks = -(-count // self.block_size)
        cache = attention.kv_cache[blocks[:num_blocks].long()].flatten(1)
        keys = cache[:, self._offsets].view(num_blocks * self.block_size, *self._shape[1:])
        if self._fp8 is None:
            return keys[:count]
        values = keys[:count].view(self._fp8).float() * _scale(attention)
        return values.to(attention.dtype)

    def _probe(self, attention: Attention, keys: torch.Tensor) -> torch.Tensor:
        """Write ``keys`` into the null block; return the block's numbers, flat, zero elsewhere."""
        cache = attention.kv_cache
        if self._fp8 is None:
            written = keys.to(device=cache.device, dtype=cache.dtype)
        else:
            # A little more, so that neither rounding down nor to the nearest gives another number.
            written = 1.03 * _scale(attention) * keys.to(cache.device)
            written = written.to(attention.dtype)
        block_size = keys.shape[0]
        slots = torch.arange(block_size, device=cache.device) + _NULL_BLOCK * block_size
        cache[_NULL_BLOCK].zero_()
        attention.impl.do_kv_cache_update(
            attention, written, torch.zeros_like(written), cache, slots
        )
        block = cache[_NULL_BLOCK].flatten()
        return (block if self._fp8 is None else block.view(self._fp8)).float().long().cpu()


def _fp8(attention: Attention) -> torch.dtype | None:
    """The type that keys are rounded to; None where they are stored as they are."""
    if attention.kv_cache_dtype not in FP8_DTYPES:
        return None
    e5m2 = attention.kv_cache_dtype == "fp8_e5m2"
    return torch.float8_e5m2 if e5m2 else current_platform.fp8_dtype()


def _scale(attention: Attention) -> torch.Tensor:
    """[1 or kv_heads, 1] what a stored number stands for."""
    scale: torch.Tensor = attention._k_scale.float().view(-1, 1)
    return scale
