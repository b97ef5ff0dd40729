"""An image counts as sent once a request with it was admitted, in vLLM's own pair of caches."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.multimodal.cache.base import MultiModalCacheMissError
from vllm.multimodal.cache.lru import LruKeyReplicatedReceiverCache, LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)
from vllm.v1.engine.output_processor import OutputProcessor

from vtr_vllm.engine.frontend import sender_cache

GIB = 2**20 / 2**30  # a mebibyte
CONFIG: Any = SimpleNamespace(
    get_multimodal_config=lambda: SimpleNamespace(mm_processor_cache_gb=GIB)
)


@pytest.fixture
def front() -> LruKeyReplicatedSenderCache:
    sender_cache.install()
    sender_cache.install()  # once is enough
    return LruKeyReplicatedSenderCache(CONFIG)


@pytest.fixture
def back() -> LruKeyReplicatedReceiverCache:
    return LruKeyReplicatedReceiverCache(CONFIG)


GRID = (1, 6, 4)


def item(kib: int = 4) -> MultiModalKwargsItem:
    fields = {"pixels": torch.zeros(kib * 256), "image_grid_thw": torch.tensor(GRID)}
    return MultiModalKwargsItem(
        {
            name: MultiModalFieldElem(data, MultiModalSharedField(batch_size=1))
            for name, data in fields.items()
        }
    )


def process(front: LruKeyReplicatedSenderCache, name: str, kib: int = 4) -> Any:
    """What the front end makes of an image: the processed item, or None if the engine has it."""
    [cached] = front.is_cached([name])
    front.touch_sender_cache_item(name)
    return front.get_and_update_item(None if cached else (item(kib), []), name)[0]


def admit(front: LruKeyReplicatedSenderCache, name: str, data: Any) -> MultiModalFeatureSpec:
    feature = MultiModalFeatureSpec(
        data=data,
        modality="image",
        identifier=name,
        mm_position=PlaceholderRange(offset=0, length=1),
        mm_hash=name,
    )
    sender_cache.about_to_send(front, [feature])
    sender_cache.note_sent([feature])
    return feature


def receive(back: LruKeyReplicatedReceiverCache, feature: MultiModalFeatureSpec) -> Any:
    return back.get_and_update_item(feature.data, feature.mm_hash)


def test_what_was_admitted_is_not_sent_again(
    front: LruKeyReplicatedSenderCache, back: LruKeyReplicatedReceiverCache
) -> None:
    first = process(front, "a")
    receive(back, admit(front, "a", first))
    again = process(front, "a")
    assert again is None
    assert receive(back, admit(front, "a", again)) is first


def test_the_grid_of_an_image_is_known_when_it_is_not_sent_again(
    front: LruKeyReplicatedSenderCache,
) -> None:
    first = admit(front, "a", process(front, "a"))
    assert sender_cache.patch_grid(first, None) == GRID
    again = admit(front, "a", process(front, "a"))
    assert again.data is None
    assert sender_cache.patch_grid(again, front) == GRID
    assert sender_cache.patch_grid(again, None) is None
    front.invalidate("a")
    assert sender_cache.patch_grid(again, front) is None


def test_an_image_of_a_refused_request_is_sent_with_the_next(
    front: LruKeyReplicatedSenderCache, back: LruKeyReplicatedReceiverCache
) -> None:
    process(front, "a")  # and refused: never admitted
    data = process(front, "a")
    assert data is not None
    assert receive(back, admit(front, "a", data)) is data
    assert process(front, "a") is None


def test_a_request_that_vllm_refuses_behind_admission_has_sent_nothing(
    front: LruKeyReplicatedSenderCache,
) -> None:
    """vLLM looks at the limits of its queue once a request is processed."""
    feature = SimpleNamespace(data=process(front, "a"), mm_hash="a", identifier="a")
    sender_cache.about_to_send(front, [feature])
    assert process(front, "a") is not None
    request: Any = SimpleNamespace(request_id="r", mm_features=[feature])
    known: Any = SimpleNamespace(request_states={"r": object()})
    known._update_streaming_request_state = lambda *_: None
    OutputProcessor.add_request(known, request, None)
    assert process(front, "a") is None


def test_two_requests_at_once_both_send_it(
    front: LruKeyReplicatedSenderCache, back: LruKeyReplicatedReceiverCache
) -> None:
    assert not any(front.is_cached(["a"]))
    first = front.get_and_update_item((item(), []), "a")[0]
    second = front.get_and_update_item((item(), []), "a")[0]
    assert receive(back, admit(front, "a", second)) is second
    assert receive(back, admit(front, "a", first)) is first


def test_what_was_evicted_counts_as_sent_no_more(
    front: LruKeyReplicatedSenderCache, back: LruKeyReplicatedReceiverCache
) -> None:
    receive(back, admit(front, "a", process(front, "a", kib=600)))
    receive(back, admit(front, "b", process(front, "b", kib=600)))
    assert front.is_cached(["a", "b"]) == [False, True]
    with pytest.raises(MultiModalCacheMissError):
        back.get_and_update_item(None, "a")
    process(front, "a", kib=600)  # refused
    assert front.is_cached(["a"]) == [False]


def test_what_the_engine_lost_is_sent_again(front: LruKeyReplicatedSenderCache) -> None:
    admit(front, "a", process(front, "a"))
    front.invalidate("a")
    assert process(front, "a") is not None


def test_other_caches_are_let_be() -> None:
    feature = SimpleNamespace(data=1, mm_hash="a", identifier="a")
    for cache in (None, object()):
        sender_cache.about_to_send(cache, [feature])
    sender_cache.note_sent([feature, SimpleNamespace(data=None)])


def test_a_look_meets_a_cache_that_another_thread_fills(front):
    """vLLM's renderer adds images in a thread of its own, and a look must not walk over them all."""
    stop = threading.Event()

    def fill() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            process(front, f"filler {number % 5000}", kib=0)

    process(front, "known")
    filler = threading.Thread(target=fill)
    filler.start()
    try:
        for _ in range(3000):
            assert front.is_cached(["known", "unknown"]) == [False, False]
    finally:
        stop.set()
        filler.join()
