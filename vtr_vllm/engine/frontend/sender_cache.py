"""Which images the engine has, as the front end knows it.

vLLM's front end notes an image as sent when it is processed. A request that is refused or aborted
after that never reaches the engine, and the next request with this image is sent without it: the
engine finds nothing, and an innocent client has to send its request once more
(``MultiModalCacheMissError``). Here an image counts as sent once a request with it is on its way: when
vLLM's output processor takes it, behind our admission and behind vLLM's own limits of its queue.
"""

import functools
from collections.abc import Iterable
from typing import Any

from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor

__all__ = ["about_to_send", "install", "note_sent", "patch_grid"]


def install() -> None:
    """Wrap vLLM's sender cache and its output processor; safe to call again."""
    stock = LruKeyReplicatedSenderCache.get_and_update_item
    if getattr(stock, "vtr_sender_cache", False):
        return

    @functools.wraps(stock)
    def get_and_update_item(self: LruKeyReplicatedSenderCache, mm_item: Any, mm_hash: str) -> Any:
        if mm_item is not None and mm_hash in self._cache:
            return mm_item  # another request is about to send it, which may yet be refused
        return stock(self, mm_item, mm_hash)

    def is_cached_item(self: LruKeyReplicatedSenderCache, mm_hash: str) -> bool:
        return getattr(_entry(self, mm_hash), "vtr_sent", False)

    get_and_update_item.vtr_sender_cache = True
    LruKeyReplicatedSenderCache.get_and_update_item = get_and_update_item
    LruKeyReplicatedSenderCache.is_cached_item = is_cached_item
    take = OutputProcessor.add_request

    @functools.wraps(take)
    def add_request(
        self: OutputProcessor, request: EngineCoreRequest, *args: Any, **kwargs: Any
    ) -> None:
        take(self, request, *args, **kwargs)
        note_sent(request.mm_features or ())

    OutputProcessor.add_request = add_request


def about_to_send(cache: Any, features: Iterable[MultiModalFeatureSpec]) -> None:
    """A request with these features was admitted. ``cache`` is the renderer's; None and others are let be."""
    if not isinstance(cache, LruKeyReplicatedSenderCache):
        return
    for feature in features:
        if feature.data is not None:
            feature.data.vtr_entry = _entry(cache, feature.mm_hash or feature.identifier)


def note_sent(features: Iterable[MultiModalFeatureSpec]) -> None:
    """The engine gets these features now."""
    for feature in features:
        entry = getattr(feature.data, "vtr_entry", None)
        if entry is not None:
            entry.vtr_sent = True
            entry.vtr_patch_grid = _patch_grid(feature)


def patch_grid(feature: MultiModalFeatureSpec, cache: Any) -> tuple[int, int, int] | None:
    """(frames, rows, columns) of the patches of what can have any size; None for what has none.

    An image that the engine has already comes without its data; ``cache`` knows it from before.
    """
    if feature.data is not None:
        return _patch_grid(feature)
    if not isinstance(cache, LruKeyReplicatedSenderCache):
        return None
    return getattr(_entry(cache, feature.mm_hash or feature.identifier), "vtr_patch_grid", None)


def _patch_grid(feature: MultiModalFeatureSpec) -> tuple[int, int, int] | None:
    data = feature.data or {}
    field = data.get("image_grid_thw", data.get("video_grid_thw"))
    if field is None:
        return None
    frames, rows, columns = field.data.tolist()
    return frames, rows, columns


def _entry(cache: LruKeyReplicatedSenderCache, mm_hash: str) -> Any:
    """What is noted of an item, without a change to the order of eviction or to the statistics.

    Not by the cache's own view, which copies all of it, while vLLM's renderer adds images in another
    thread: one lookup in the dictionary cannot meet a change.
    """
    return cache._cache._Cache__data.get(mm_hash)
