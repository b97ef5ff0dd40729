"""Which images of a prompt an earlier prompt had at the same place: what reuse could find in the cache.

A request whose schedule looks at the question computes its images anew, even where an earlier turn
had them. How much that costs a server's traffic is counted here, by what a KV cache of the engine's
size would still hold of earlier prompts at full budget, the least recently used going first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreRequest

from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.common.request_view import vision_items, vision_span


@dataclass(frozen=True)
class Prefix:
    """A prompt up to an image's end."""

    key: bytes
    """Of all tokens and images up to there, and of what else keeps prompts apart in the cache."""
    tokens: int
    """Prompt tokens behind the image before."""
    vision: int
    """Vision tokens of the image."""


class ReturningImages:
    """Remembers prompts of ``capacity`` tokens in all."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._known: OrderedDict[bytes, int] = OrderedDict()
        """Key -> tokens; the least recently used first."""

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> "ReturningImages":
        """For an engine that has started: its size of a KV cache is known then."""
        cache = vllm_config.cache_config
        bands = len(LayerBands.of(vllm_config).starts)
        return cls((cache.num_gpu_blocks or 0) * cache.block_size // bands)

    def returning(self, prefixes: Sequence[Prefix]) -> int:
        """Vision tokens of the images that an earlier prompt had, from the first image on."""
        total = 0
        for prefix in prefixes:
            if prefix.key not in self._known:
                break
            total += prefix.vision
        return total

    def note(self, prefixes: Sequence[Prefix]) -> None:
        """A prompt runs, and leaves itself in the cache."""
        # From the last on, as blocks are freed: of a prompt its end goes first.
        for prefix in reversed(prefixes):
            self._held += prefix.tokens - self._known.pop(prefix.key, 0)
            self._known[prefix.key] = prefix.tokens
        while self._held > self._capacity:
            self._held -= self._known.popitem(last=False)[1]


def prefixes_of(request: EngineCoreRequest) -> list[Prefix]:
    """Of each image of a prompt, in its order."""
    items = vision_items(request.mm_features or ())
    if not items:
        return []
    tokens = np.asarray(request.prompt_token_ids or (), dtype=np.int32)
    adapter = request.lora_request.lora_int_id if request.lora_request is not None else 0
    chain = blake2b(repr((request.cache_salt, adapter)).encode(), digest_size=16)
    found: list[Prefix] = []
    start = 0
    for item in items:
        span = vision_span(item)
        end = int(span[-1]) + 1
        chain.update(tokens[start:end].tobytes() + str(item.identifier).encode())
        found.append(Prefix(chain.digest(), end - start, len(span)))
        start = end
    return found
