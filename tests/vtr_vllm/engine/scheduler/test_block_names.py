"""The blocks of local requests in the prefix cache: whatever is hit holds what would be computed.

The real manager of the KV cache in bands, and a model of what is in its blocks: a token's KV is a
function of the prompt up to it, or up to the end of its image, and of the schedule, and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.common.request_view import read_request
from vtr_vllm.engine.scheduler.block_names import BlockNames
from vtr_vllm.engine.scheduler.kv_bands import bind_bands, register_band_spec
from vtr_vllm.engine.scheduler.local_hits import follow_local_requests
from vtr_vllm.engine.scheduler.scheduler import Scheduler
from vtr_vllm.reduction.request import ReducedRequest

BLOCK = 4
BANDS = LayerBands(6, (0, 2, 4))
KEEPS: list[list[float] | None] = [
    None,
    [1, 1, 0.5, 0.5, 0.25, 0.25],
    [0.4] * 6,
    [0.4, 0.4, 0, 0, 0, 0],
    [1, 1, 1, 1, 0.3, 0.3],
]
SIZES = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 16, "dtype": torch.float32}
init_none_hash(sha256)
HASHER = get_request_block_hasher(BLOCK, sha256)

Piece = int | tuple[str, int]
"""A word, or (image, its vision tokens)."""


@dataclass
class Blocks:
    """A KV cache in bands, and a model of what its blocks hold."""

    count: int = 200
    held: dict[int, list[Any]] = field(default_factory=dict)
    made: int = 0
    settled: dict[int, list[Any]] = field(default_factory=dict)
    """What blocks held when this step began: it copies blocks before it computes any."""
    one_step: bool = False
    """Whether what is asked for belongs to one step."""

    def __post_init__(self) -> None:
        register_band_spec()
        self.reduced: dict[str, ReducedRequest] = {}
        groups = [
            KVCacheGroupSpec(
                [f"layers.{first}", f"layers.{first + 1}"],
                BandSpec(**SIZES, band=band, first_layer=first),
            )
            for band, first in enumerate(BANDS.starts)
        ]
        self.manager = KVCacheManager(
            KVCacheConfig(self.count, [], groups),
            max_model_len=4096,
            scheduler_block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        coordinator = self.manager.coordinator
        follow_local_requests(coordinator, bind_bands(coordinator, self.reduced))

    def request(
        self,
        pieces: list[Piece],
        keep: list[float] | None,
        trace: str | None = None,
        forms: list[int] | None = None,
        rule: str = "saliency",
        **options: Any,
    ) -> Request:
        self.made += 1
        name = str(self.made)
        ids: list[int] = []
        features = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
                continue
            image, tokens = piece
            place = PlaceholderRange(len(ids), tokens)
            features.append(MultiModalFeatureSpec(None, "image", image, place))
            ids += [999] * tokens
        wire: dict[str, Any] = {}
        if keep is not None:
            cuts = sum(b < a for a, b in zip([1.0, *keep], keep, strict=False))
            wire = {"vtr_keep": keep, "vtr_rules": [rule] * cuts}
            wire |= {"vtr_trace": trace} if trace else {}
            wire |= {"vtr_units": forms} if forms else {}
        params = SamplingParams(max_tokens=99, extra_args=wire or None)
        request = Request(
            name, ids, params, None, mm_features=features, block_hasher=HASHER, **options
        )
        reduced = read_request(wire, features, ids, BANDS)
        if reduced is not None:
            self.reduced[name] = reduced
            scheduler = SimpleNamespace(kv_cache_manager=self.manager, _hash_function=sha256)
            Scheduler._set_block_hashes(scheduler, request, reduced)  # type: ignore[arg-type]
        return request

    def stream(self, request: Request, layer: int, end: int) -> list[Any]:
        """What ``layer`` stores of the first ``end`` positions: all that decides each token's KV."""
        reduced = self.reduced.get(request.request_id)
        pictures = tuple(
            (f.mm_position.offset, f.identifier)
            for f in request.mm_features
            if f.mm_position.offset < end
        )
        lora = request.lora_request.name if request.lora_request else None
        seen = [*request.all_token_ids]
        wire = request.sampling_params.extra_args or {}
        made = []
        gone = 0
        position = 0
        parts = {part.start: part for part in reduced.parts} if reduced else {}
        while position < end:
            part = parts.get(position)
            length = 1 if part is None else part.end - part.start
            vision = 0 if part is None else sum(len(unit.vision) for unit in part.units)
            kept = length if part is None else part.plan.counts[layer] + length - vision
            position += length
            before = tuple(p for p in pictures if p[0] < position)
            forms = wire.get("vtr_units", [])[: 3 * len(before)]
            asked = {key: wire.get(key) for key in ("vtr_keep", "vtr_rules")}
            schedule = str((asked, forms)) if before and reduced else None
            for number in range(kept):
                made.append((tuple(seen[:position]), before, lora, schedule, number, layer))
            gone += length - kept
        return made

    def start(self, request: Request) -> int:
        """Take the cached blocks of a request; returns how many positions they hold, all as they should."""
        if not self.one_step:
            self.next_step()
        blocks, computed, _ = self.manager.get_computed_blocks(request)
        reduced = self.reduced.get(request.request_id)
        for band, (first, held) in enumerate(zip(BANDS.starts, blocks.blocks, strict=True)):
            expected = self.stream(request, first, computed)
            found = [entry for block in held for entry in self.held[block.block_id]]
            assert found[: len(expected)] == expected, (band, computed)
            assert len(held) == -(-len(expected) // BLOCK)
        self.advance(request, request.num_tokens - computed, computed, blocks, reduced)
        return computed

    def advance(
        self,
        request: Request,
        new: int,
        computed: int = 0,
        blocks: Any = None,
        reduced: ReducedRequest | None = None,
    ) -> bool:
        """Compute the next ``new`` positions, in steps that end anywhere but inside of an image."""
        if reduced is not None and new > 1 and not self.one_step:
            for part in reduced.parts:
                length = part.start - request.num_computed_tokens - computed
                if 0 < length < new:
                    first = self.advance(request, length, computed, blocks)
                    return first and self.advance(request, new - length, reduced=reduced)
        if not self.one_step:
            self.next_step()
        if self.manager.allocate_slots(request, new, computed, blocks) is None:
            return False
        copies, retained = self.manager.take_kv_cache_block_copies()
        for source, destination in copies:
            self.held[destination] = list(self.settled[source])
        self.manager.block_pool.free_blocks(retained)
        start = request.num_computed_tokens + computed
        end = start + new
        groups = self.manager.coordinator.get_blocks(request.request_id)
        for first, held in zip(BANDS.starts, groups, strict=True):
            stored = len(self.stream(request, first, start))
            stream = self.stream(request, first, end)
            for place in range(stored, len(stream)):
                block = held[place // BLOCK]
                assert block.ref_cnt == 1, "what is written belongs to nobody else"
                entries = self.held.setdefault(block.block_id, [None] * BLOCK)
                entries[place % BLOCK] = stream[place]
            there = [entry for block in held for entry in self.held[block.block_id]]
            assert there[: len(stream)] == stream, (first, computed)
        request.num_computed_tokens = end
        return True

    def next_step(self) -> None:
        self.manager.new_step_starts()
        self.settled = {block: list(entries) for block, entries in self.held.items()}

    def answer(self, request: Request, words: list[int]) -> None:
        for word in words:
            request.append_output_token_ids(word)
            if not self.advance(request, 1):
                return  # no block is free: a scheduler preempts it now

    def finish(self, request: Request) -> None:
        self.manager.free(request)
        self.reduced.pop(request.request_id, None)

    def run(self, pieces: list[Piece], keep: list[float] | None, **options: Any) -> int:
        request = self.request(pieces, keep, **options)
        found = self.start(request)
        self.finish(request)
        return found


CAT, DOG = ("cat", 10), ("dog", 7)
TURN = [*range(9), CAT, *range(20, 30)]


@pytest.mark.parametrize("keep", KEEPS)
def test_a_second_turn_hits_the_first_and_what_it_answered(keep: list[float] | None) -> None:
    cache = Blocks()
    request = cache.request(TURN, keep)
    assert cache.start(request) == 0
    cache.answer(request, [*range(50, 60)])
    cache.finish(request)
    done = len(request.all_token_ids)
    again = [*TURN, *range(50, 60), DOG, *range(5)]
    assert done // BLOCK * BLOCK <= cache.run(again, keep) <= done
    other_words = [*TURN, *range(50, 60), DOG, 7, 7, 7]
    assert cache.run(other_words, keep) >= (done + DOG[1]) // BLOCK * BLOCK, "behind the image"


def test_what_is_not_the_same_is_not_hit() -> None:
    """Before the image all share; behind it only the same schedule, image, adapter and words do."""
    keep = KEEPS[1]
    cache = Blocks()
    assert cache.run(TURN, keep) == 0
    before = 9 // BLOCK * BLOCK
    assert cache.run([*range(9), DOG, *range(20, 30)], keep) == before
    assert cache.run(TURN, KEEPS[2]) == before
    assert cache.run(TURN, None) == before
    lora = LoRARequest("adapter", 1, "/nowhere")
    assert cache.run(TURN, keep, lora_request=lora) == 0
    assert cache.run(TURN, keep, cache_salt="mine") == 0
    assert cache.run(TURN, keep, trace="t") <= 9, (
        "who asks which tokens stay has the image run again"
    )
    assert cache.run(TURN, keep) > 20
    behind = 9 + CAT[1]
    assert cache.run([*range(9), CAT, 7, 7, 7, 7], keep) == behind, (
        "the image, and nothing of the words"
    )
    assert cache.run([*range(9), CAT, 20, 21, 22, 7, 7], keep) == behind + 1, "where a block ends"


def test_images_of_another_form_are_other_images() -> None:
    """A front end that knows the grid of an image, or the frames of a video, and one that does not."""
    keep = [0.4] * 6
    cache = Blocks()
    assert cache.run(TURN, keep, forms=[0, 0, 0]) == 0
    before = 9 // BLOCK * BLOCK
    assert cache.run(TURN, keep, forms=[1, 2, 5]) == before
    assert cache.run(TURN, keep, forms=[1, 2, 5]) > 20
    assert cache.run([*TURN, DOG, 7], keep, forms=[1, 2, 5, 1, 1, 7]) > 20, "whatever comes behind"


def test_what_a_step_computes_is_shared_whole_and_never_copied() -> None:
    """Requests that come together: the later ones take whole blocks of the first, or compute themselves."""
    for keep in KEEPS[1:]:
        cache = Blocks()
        cache.next_step()
        cache.one_step = True
        requests = [cache.request([*TURN, *range(number)], keep) for number in range(4)]
        found = [cache.start(request) for request in requests]
        assert found[0] == 0
        assert max(found) >= 9 // BLOCK * BLOCK, "the words before the image"
        cache.one_step = False
        assert cache.start(cache.request(TURN, keep)) >= 9 + CAT[1]


@pytest.mark.parametrize("keep", [KEEPS[1], KEEPS[4]])  # attention ranks nothing before layer 2
def test_a_guided_request_and_others_share_the_words_before_the_image(keep: list[float]) -> None:
    """Whatever runs first: of what is behind them nobody finds its blocks, and it finds nobody's."""
    cache = Blocks()
    guided = {"rule": "last"}
    before = 9 // BLOCK * BLOCK
    assert cache.run(TURN, keep, **guided) == 0
    request = cache.request(TURN, keep, **guided)
    assert not cache.reduced[request.request_id].is_local
    assert cache.start(request) == before
    cache.answer(request, [*range(50, 60)])
    cache.finish(request)
    for others in (None, keep):
        assert cache.run(TURN, others) == before
        assert cache.run(TURN, others) > 20, "stored by now"
        assert cache.run(TURN, keep, **guided) == before
    assert cache.run([*TURN, *range(50, 60)], keep, **guided) == before, "not what it answered"


pieces = st.lists(
    st.integers(1, 3) | st.sampled_from([CAT, DOG, ("cow", 4), ("ant", 1), ("elk", 30)]),
    min_size=1,
    max_size=25,
)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_wrong_hit(data: st.DataObject) -> None:
    """Related prompts in any order, one while others hold their blocks, in a cache too small for them."""
    cache = Blocks(data.draw(st.sampled_from([60, 90, 400])))
    said: list[list[Piece]] = [[1, 2, 3]]
    running: list[Request] = []
    for _ in range(12):
        cache.one_step = data.draw(st.booleans())
        if cache.one_step and data.draw(st.booleans()):
            cache.next_step()
        prompt = [*data.draw(st.sampled_from(said)), *data.draw(pieces), 1]
        said.append(prompt)
        request = cache.request(prompt, data.draw(st.sampled_from(KEEPS)))
        while running and (len(running) > 3 or data.draw(st.booleans())):
            cache.finish(running.pop(0))
        blocks, computed, _ = cache.manager.get_computed_blocks(request)
        needed = len(request.all_token_ids)
        free = cache.manager.block_pool.get_num_free_blocks()
        if 3 * (needed // BLOCK + 2) > free:
            cache.reduced.pop(request.request_id, None)
            continue
        del blocks, computed
        cache.start(request)
        cache.one_step = False
        cache.answer(request, data.draw(st.lists(st.integers(1, 3), max_size=9)))
        said.append([*prompt, *request.output_token_ids])
        running.append(request)
    for request in running:
        cache.finish(request)
    assert cache.manager.usage == 0


def test_names_are_of_the_prompt_so_far() -> None:
    """By hand: blocks of 4, two words, an image of 10 of which a band keeps 3, then words."""
    cache = Blocks()
    request = cache.request([1, 2, ("cat", 10), *range(20)], [0.3] * 6)
    names = request.block_hashes
    assert isinstance(names, BlockNames)
    # Two words and two tokens fill block 0 at the image's end; the third and three words block 1.
    assert [names.reduced.filled_at(4 * n, 0) for n in (1, 2, 3)] == [12, 15, 19]
    plain = cache.request([1, 2, ("cat", 10), *range(20)], None).block_hashes
    assert len({*plain, *(names.name(n, 0, BLOCK) for n in range(3))}) == len(plain) + 3
    assert names.name(40, 0, BLOCK) is None, "its tokens are not there"
    assert np.isclose(names.reduced.plan.mean_keep, 0.3)
