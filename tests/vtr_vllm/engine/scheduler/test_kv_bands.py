"""Bands as KV-cache specs, and what their managers allocate."""

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from vtr_vllm.engine.common.band_spec import BandSpec, put_into_band
from vtr_vllm.engine.common.config import band_starts, padded_layers
from vtr_vllm.engine.scheduler.kv_bands import BandManager, Idle, bind_bands, register_band_spec
from vtr_vllm.errors import UnsupportedModel
from vtr_vllm.reduction.request import Unit, guided_request
from vtr_vllm.schedules import RankRule, make_plan

SIZES = {"block_size": 4, "num_kv_heads": 2, "head_size": 16, "dtype": torch.float32}


def spec(band, first_layer=None, **changes):
    first_layer = 2 * band if first_layer is None else first_layer
    return BandSpec(**(SIZES | changes), band=band, first_layer=first_layer)


def test_a_band_merges_with_itself():
    assert BandSpec.merge([spec(1), spec(1)]) == spec(1)


@pytest.mark.parametrize("other", [spec(2), spec(1, head_size=32), FullAttentionSpec(**SIZES)])
def test_nothing_else_merges_into_a_band(other):
    # AssertionError is how vLLM hears that layers do not belong together.
    for specs in ([spec(1), other], [spec(1), spec(1), other]):
        with pytest.raises(AssertionError):
            BandSpec.merge(specs)


def test_a_band_is_uniform_only_with_itself():
    assert spec(1).is_uniform_with_collection({"a": spec(1), "b": spec(1)})
    assert not spec(1).is_uniform_with_collection({"a": spec(1), "b": spec(2)})
    assert not spec(1).is_uniform_with_collection({"a": FullAttentionSpec(**SIZES)})


def test_registration_can_be_repeated():
    for _ in range(2):
        register_band_spec()
        assert KVCacheSpecRegistry.get_manager_class(spec(0)) is BandManager
        assert KVCacheSpecRegistry.get_uniform_type_base_spec(spec(0)) is BandSpec
    stock = FullAttentionSpec(**SIZES)
    assert KVCacheSpecRegistry.get_manager_class(stock) is FullAttentionManager


def layer(stock):
    return SimpleNamespace(layer_name="decoder.7", get_kv_cache_spec=lambda config: stock)


def test_a_layer_put_into_a_band_keeps_everything_else():
    attention = layer(FullAttentionSpec(**SIZES, head_size_v=8, page_size_padded=4096))
    put_into_band(attention, 3, 6)
    expected = spec(3, 6, head_size_v=8, page_size_padded=4096)
    assert attention.get_kv_cache_spec(None) == expected
    assert attention.get_kv_cache_spec(None).page_size_bytes == 4096


@pytest.mark.parametrize("stock", [SlidingWindowSpec(**SIZES, sliding_window=8), None])
def test_a_layer_without_full_attention_is_refused_by_name(stock):
    attention = layer(stock)
    put_into_band(attention, 0, 0)
    with pytest.raises(UnsupportedModel, match="decoder.7 has the KV-cache spec"):
        attention.get_kv_cache_spec(None)


# 6 words, 10 vision tokens, 4 words; bands begin at layers 0, 2, 4 and keep 10, 5, 1.
PLAN = make_plan([1, 1, 0.5, 0.5, 0.1, 0], [RankRule.parse("last")] * 3, 10)
REQUEST = guided_request(PLAN, [Unit(np.arange(6, 16))], 20)


def manager(band, blocks=64):
    pool = BlockPool(blocks, enable_caching=True, hash_block_size=4)
    made = BandManager(
        spec(band),
        block_pool=pool,
        enable_caching=True,
        kv_cache_group_id=band,
        scheduler_block_size=4,
    )
    made.bind({"reduced": REQUEST}, [made], Idle(), set())
    return made


@pytest.mark.parametrize(("band", "stored"), [(0, 20), (1, 15), (2, 11)])
def test_stored_tokens_follow_the_first_layer_of_the_band(band, stored):
    made = manager(band)
    assert made.stored_tokens("reduced", 20) == stored
    assert made.stored_tokens("reduced", 29) == stored + 9
    assert made.stored_tokens("reduced", 6) == 6
    assert made.stored_tokens("another", 20) == 20


@pytest.mark.parametrize(("band", "stored"), [(0, 20), (1, 15), (2, 11)])
def test_blocks_are_counted_and_given_for_what_is_stored(band, stored):
    made = manager(band)
    expected = -(-stored // 4)
    counted = made.get_num_blocks_to_allocate(
        "reduced", 20, [], 0, 0, 20, apply_admission_cap=False, prefill_end=20
    )
    assert counted == expected
    assert len(made.allocate_new_blocks("reduced", 20, 20)) == expected
    room = 4 * expected - stored
    assert made.allocate_new_blocks("reduced", 20 + room, 20 + room) == []
    assert len(made.allocate_new_blocks("reduced", 21 + room, 21 + room)) == 1
    assert len(made.allocate_new_blocks("another", 20, 20)) == 5


@pytest.mark.parametrize("steps", [[20] + [1] * 12, [3, 5, 1, 1, 9, 1, 1, 1], [4, 4, 4, 1, 1]])
def test_a_request_that_is_not_reduced_is_served_as_by_vllm(steps):
    """Step by step: blocks counted, given and registered, where ours answers at once and where it asks."""
    init_none_hash(sha256)
    ours = manager(1)
    pool = BlockPool(64, enable_caching=True, hash_block_size=4)
    stock = FullAttentionManager(
        FullAttentionSpec(**SIZES),
        block_pool=pool,
        enable_caching=True,
        kv_cache_group_id=1,
        scheduler_block_size=4,
    )
    hasher = get_request_block_hasher(4, sha256)
    request = Request("another", [*range(sum(steps))], SamplingParams(), None, block_hasher=hasher)
    tokens = 0
    for step in steps:
        tokens += step
        given = []
        for made in (ours, stock):
            counted = made.get_num_blocks_to_allocate("another", tokens, [], 0, 0, tokens)
            blocks = made.allocate_new_blocks("another", tokens, tokens)
            made.cache_blocks(request, tokens, replay_boundaries=[])
            registered = [block.block_hash for block in made.req_to_blocks["another"]]
            ids = [block.block_id for block in blocks]
            given.append((counted, ids, registered, dict(made.num_cached_block)))
        assert given[0] == given[1]


def test_a_request_that_is_bound_later_is_seen():
    table = {}
    made = manager(1)
    made.bind(table, [made], Idle(), set())
    assert made.stored_tokens("reduced", 20) == 20
    table["reduced"] = REQUEST
    assert made.stored_tokens("reduced", 20) == 15


def test_nothing_behind_the_first_vision_token_is_cached(monkeypatch):
    cached = []

    def cache_blocks(self, request, num_tokens, retention_interval=None, *, replay_boundaries):
        cached.append((num_tokens, retention_interval, replay_boundaries))

    monkeypatch.setattr(FullAttentionManager, "cache_blocks", cache_blocks)
    made = manager(0)  # keeps every token, and still: its KV may follow another question
    for request_id, num_tokens in (
        ("reduced", 20),
        ("reduced", 3),
        ("reduced", 5),
        ("another", 20),
    ):
        made.cache_blocks(
            SimpleNamespace(request_id=request_id),
            num_tokens,
            retention_interval=7,
            replay_boundaries=(1,),
        )
    # Of 3 tokens, which fill no block, vLLM is not asked.
    assert cached == [(6, 7, (1,)), (5, 7, (1,)), (20, 7, (1,))]


# Prefix caching beside stock vLLM: the real manager of a scheduler, in one group or in bands.
TOKENS = 16
init_none_hash(sha256)
HASHER = get_request_block_hasher(TOKENS, sha256)


def cache(num_blocks, layers, bands):
    """A KV cache of as many bytes as ``num_blocks`` blocks of all ``layers``; bands None: stock."""
    sizes = SIZES | {"block_size": TOKENS}
    names = [f"layers.{layer}" for layer in range(layers)]
    if bands is None:
        groups = [KVCacheGroupSpec(names, FullAttentionSpec(**sizes))]
    else:
        starts = band_starts(layers, bands)
        groups = [
            KVCacheGroupSpec(names[first:end], BandSpec(**sizes, band=band, first_layer=first))
            for band, (first, end) in enumerate(zip(starts, (*starts[1:], layers), strict=True))
        ]
    largest = max(len(group.layer_names) for group in groups)
    register_band_spec()
    manager = KVCacheManager(
        KVCacheConfig(num_blocks * layers // largest, [], groups),
        max_model_len=4096,
        scheduler_block_size=TOKENS,
        hash_block_size=TOKENS,
    )
    bind_bands(manager.coordinator, {})
    return manager


def conversations(seed, turns):
    """Turns (prompt, answer) of conversations in random order, each turn with all before it."""
    rng = np.random.default_rng(seed)
    system = rng.integers(0, 1000, 100).tolist()
    open_ones = [[] for _ in range(5)]
    for _ in range(turns):
        index = rng.integers(len(open_ones))
        said = open_ones[index]
        said += rng.integers(0, 1000, rng.integers(20, 200)).tolist()
        answer = rng.integers(0, 1000, rng.integers(5, 40)).tolist()
        yield system + said, answer
        open_ones[index] = [] if len(said) > 900 else said + answer


def hits(manager, requests, at_once):
    """Prompt tokens that the cache had, over all requests; ``at_once`` of them hold their blocks."""
    running, found = deque(), 0

    def finish():
        request, answer = running.popleft()
        for token in answer:
            request.append_output_token_ids(token)
            assert manager.allocate_slots(request, 1) is not None
            request.num_computed_tokens += 1
        manager.free(request)

    for number, (prompt, answer) in enumerate(requests):
        if len(running) == at_once:
            finish()
        params = SamplingParams(max_tokens=99)
        request = Request(str(number), prompt, params, None, block_hasher=HASHER)
        blocks, computed, _ = manager.get_computed_blocks(request)
        new = request.num_tokens - computed
        assert manager.allocate_slots(request, new, computed, blocks) is not None
        found += computed
        request.num_computed_tokens = request.num_tokens
        running.append((request, answer))
    while running:
        finish()
    assert manager.usage == 0
    return found


SPLITS = [(32, 8), (40, 5), (36, 6), (12, 12), (26, 7)]


@pytest.mark.parametrize(("layers", "bands"), SPLITS)
@pytest.mark.parametrize(("num_blocks", "at_once"), [(100, 1), (170, 2)])
def test_prefix_caching_under_eviction_hits_as_stock_vllm_does(layers, bands, num_blocks, at_once):
    """The same requests, the same bytes, a cache too small for them."""
    requests = list(conversations(0, 150))
    # Padding costs bytes, so it leaves the blocks of a smaller cache; nothing else may cost hits.
    filled = num_blocks * layers // (layers + padded_layers(layers, bands))
    stock = hits(cache(filled, layers, None), requests, at_once)
    assert 0.3 < stock / sum(len(prompt) for prompt, _ in requests) < 0.8, "a cache too small"
    assert hits(cache(num_blocks, layers, bands), requests, at_once) >= 0.97 * stock


@pytest.mark.parametrize(("layers", "bands"), SPLITS)
def test_what_is_evicted_first_is_the_tail_in_every_band(layers, bands):
    """A request of 60 blocks is freed, and of a full cache of 61 so many are taken again."""
    prompt = list(range(60 * TOKENS + 1))
    for taken in (1, 10, 30, 59):
        manager = cache(
            -(-61 * (layers + padded_layers(layers, bands)) // layers) + 1, layers, bands
        )
        hits(manager, [(prompt, [])], 1)
        pool = manager.block_pool
        pool.get_new_blocks(pool.get_num_free_blocks() - (60 - taken) * bands)
        again = Request("again", prompt, SamplingParams(), None, block_hasher=HASHER)
        assert manager.get_computed_blocks(again)[1] == (60 - taken) * TOKENS
