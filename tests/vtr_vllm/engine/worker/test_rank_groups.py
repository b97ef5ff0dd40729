"""Requests that are ranked together get the scores that each gets alone."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtr_vllm.engine.worker.test_prefix_keys import BLOCK, HEADS, KINDS, WIDTH, attention
from tests.vtr_vllm.ranking.by_itself import Attention, Given, score
from tests.vtr_vllm.ranking.given import alone
from tests.vtr_vllm.reduction.strategies import request_of, whole_parts
from vtr_vllm.engine.worker import rank_groups, scoring
from vtr_vllm.engine.worker.attention import BandTables, Step
from vtr_vllm.engine.worker.prefix_keys import PrefixKeys
from vtr_vllm.engine.worker.rope import unrotate
from vtr_vllm.engine.worker.scoring import Scorer
from vtr_vllm.ranking import probabilities
from vtr_vllm.ranking.judged_rule import JudgedRule
from vtr_vllm.ranking.probabilities import received_together
from vtr_vllm.reduction.batch import StepRequest, plan_batch
from vtr_vllm.reduction.gather import Rows, rows_of

QUERY_HEADS, LAYERS, BLOCKS = 4, 7, 3
RULES = [
    *["last", "last-max", "instruction", "last-norope", "instruction-norope-max", "random"],
    *["last-prior", "last-norope-prior", "instruction:0119", "last-prior:9130"],
    *["atp", "atp-fixed"],
]
LOCAL = ["self", "self-max", "self:5009", "random"]
CPU = torch.device("cpu")


@st.composite
def prefills(draw):
    """Prompts of uneven length, some behind a cached prefix, some with generated tokens behind."""
    before, tokens = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 7, 20]))
    behind = draw(st.integers(1, 25))
    rules = draw(st.tuples(st.sampled_from(RULES), st.sampled_from([*RULES, "previous"])))
    prompt = before + tokens + behind
    request = request_of(
        [range(before, before + tokens)], prompt, (1, 1, 0.9, 0.9, 0.4, 0.4, 0), (*rules, "last")
    )
    computed = draw(st.sampled_from([0, 0, before // 2, before]))
    return StepRequest(computed, prompt - computed + draw(st.sampled_from([0, 0, 3])), request)


@st.composite
def chunks(draw):
    """Some of the images of a local request, behind others that earlier steps cut."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    spans, place = [], draw(st.integers(1, 9))
    for size in sizes:
        spans.append(range(place, place + size))
        place += size + draw(st.integers(0, 4))
    rules = draw(st.lists(st.sampled_from(LOCAL), min_size=3, max_size=3))
    keep = (1, 1, 0.7, 0.7, 0.4, 0.4, 0.2)
    request = request_of(spans, place + 3, keep, rules, local=True)
    legal = whole_parts(request, place + 3)
    computed = draw(st.sampled_from(legal[:-1]))
    end = draw(st.sampled_from([end for end in legal if end > computed]))
    return StepRequest(computed, end - computed, request)


others = st.builds(StepRequest, st.just(9), st.integers(1, 9), st.none())


class Cache:
    """A layer's cache with our reader, and keys of requests in it."""

    def __init__(self, kind: str, requests: list[StepRequest], draw: torch.Generator) -> None:
        self.layer = attention(kind)
        shape = self.layer.kv_cache.shape
        count = 1 + BLOCKS * len(requests)
        self.layer.kv_cache = torch.zeros(count, *shape[1:], dtype=self.layer.kv_cache.dtype)
        self.layer.impl.scale = 0.3
        self.keys = PrefixKeys(self.layer, BLOCK)
        blocks = 1 + torch.randperm(count - 1, generator=draw).view(len(requests), BLOCKS)
        self.tables = blocks.int()

    def write(self, request: int, keys: torch.Tensor, first: int) -> None:
        place = torch.arange(first, first + len(keys))
        slots = self.tables[request].long()[place // BLOCK] * BLOCK + place % BLOCK
        keys = keys.contiguous()
        self.layer.impl.do_kv_cache_update(self.layer, keys, keys, self.layer.kv_cache, slots)

    def read(self, request: int, count: int) -> torch.Tensor:
        return self.keys.read(self.layer, self.tables[request], count)


@pytest.mark.parametrize("kind", KINDS[:2])
@given(
    requests=st.lists(prefills() | chunks() | others, min_size=1, max_size=7),
    chunk=st.sampled_from([1, 70, probabilities.CHUNK]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_together_as_alone(kind, requests, chunk, seed):
    plan = plan_batch(requests, LAYERS, (0, 3))
    if plan is None or not plan.cuts:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_groups, "CHUNK", chunk)
        together = partial(received_together, chunk=chunk)
        patch.setattr(scoring, "received_together", together)
        patch.setattr(scoring, "combine_heads", alone)
        patch.setattr(scoring, "get_tensor_model_parallel_rank", lambda: 0)
        check(plan, requests, kind, torch.Generator().manual_seed(seed))


class Judge:
    """What stands for trained modules: it tells everything that they are shown."""

    def score(self, layer, tokens, looks, values):
        of_rows = 2 * looks[0] + looks[1] + values.sum((1, 2))[:, None]
        return torch.where(tokens >= 0, of_rows, layer)


def no_states(rows):
    raise AssertionError("none of these rules looks at states")


def check(plan, requests, kind, draw):
    cache = Cache(kind, requests, draw)
    rotary = SimpleNamespace(
        rotary_dim=WIDTH,
        is_neox_style=True,
        cos_sin_cache=torch.rand(200, WIDTH, generator=draw) + 0.5,
    )
    block = SimpleNamespace(attn=cache.layer, rotary_emb=rotary)
    step = Step(plan, BandTables([cache.tables] * 2, [BLOCK] * 2))
    nothing = torch.zeros(plan.num_rows, 4)
    scorer = Scorer(step, [block] * LAYERS, cache.keys, nothing, None, modules=Judge())
    positions = torch.cat(
        [torch.arange(one.computed, one.computed + one.scheduled) for one in requests]
    )
    rows = Rows(plan, CPU, positions)
    previous = {}
    for layer, members in sorted(plan.cuts.items()):
        count = len(rows.original)
        query = torch.randn(count, QUERY_HEADS, WIDTH, generator=draw)
        key, value = torch.randn(2, count, HEADS, WIDTH, generator=draw)
        before = next(s for s in plan.segments if s.first_layer < layer <= s.end_layer)
        own = key.split(before.query_len.tolist())
        for index, (keys, length) in enumerate(zip(own, before.seq_len, strict=True)):
            if requests[index].reduced is not None:
                prefix = torch.randn(length - len(keys), HEADS, WIDTH, generator=draw)
                cache.write(index, torch.cat([prefix, keys]), 0)
        scorer.look(layer - 1, query, key, value)
        scores = scorer.score_all(members, rows, layer - 1, no_states)
        assert scores.shape == (len(members), max(cut.num_rows for cut in members))
        for own, cut in zip(scores, members, strict=True):
            expected = by_itself(cut, rows, (query, key, value), cache, rotary, previous)
            vision = rows.vision[rows_of(cut)] >= 0
            got = own[: cut.num_rows]
            torch.testing.assert_close(got[vision], expected[vision], rtol=1e-4, atol=1e-6)
            place = cut.index, cut.part.first
            previous[place] = torch.zeros(cut.part.plan.n_vision)
            previous[place][rows.vision[rows_of(cut)][vision]] = got[vision]
        before, places = rows.original, rows.positions
        chosen = rows.cut(members, scores).long()
        assert torch.equal(rows.original, before[chosen])
        assert torch.equal(rows.positions, places[chosen])


def by_itself(cut, rows, given, cache, rotary, previous):
    query, key, value = given
    stored = cache.read(cut.index, cut.stored + cut.num_rows)
    own = stored[cut.stored :] if cache.keys.rounds else key[rows_of(cut)]
    keys = torch.cat([stored[: cut.stored], own])
    where = rows.positions[rows_of(cut)]
    common = {"prefix": cut.stored, "scale": 0.3, "combine": alone}
    plain = Attention(
        query=unrotate(rotary, where, query[rows_of(cut)]),
        key=unrotate(rotary, torch.cat([torch.arange(cut.stored), where]), keys),
        unrotated=lambda: plain,
        **common,
    )
    rotated = Attention(query=query[rows_of(cut)], key=keys, unrotated=lambda: plain, **common)
    of_request = Given(
        vision=rows.vision[rows_of(cut)],
        prompt_rows=cut.prompt_rows,
        instruction_rows=cut.request.instruction_len,
        image_sizes=cut.part.image_sizes,
        vision_rows=cut.vision_before,
        seeds=[unit.seed for unit in cut.part.units],
        grids=[unit.grid for unit in cut.part.units],
        attention=rotated,
        previous=previous.get((cut.index, cut.part.first)),
    )
    if not isinstance(cut.rule, JudgedRule):
        return score(cut.rule, of_request)
    later, text = (score(look, of_request) for look in cut.rule.looks)
    return 2 * later + text + value[cut.first_row + cut.prompt_rows - 1].sum()


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [([100] * 8, 1), ([100, 60, 119, 120], 1), ([1000, 10, 10, 10], 2), ([1, 3, 9, 27, 81], 5)],
)
def test_groups_are_of_like_length(lengths, groups):
    """So padding never takes more than the rows."""
    requests = [
        StepRequest(0, n + 3, request_of([range(1, n + 1)], n + 3, (1, 1, 0, 0, 0, 0, 0), ["last"]))
        for n in lengths
    ]
    plan = plan_batch(requests, LAYERS, (0,))
    made = rank_groups.rank_groups(plan.cuts, plan.num_rows, BLOCK, False, CPU)[2]
    assert sorted(place for group in made for place in group.places) == list(range(len(lengths)))
    assert sum(len(group.rows) for group in made) <= 2 * plan.num_rows
    assert len(made) <= groups


def test_a_group_has_no_more_keys_than_are_held_at_a_time(monkeypatch):
    request = request_of([range(1, 61)], 63, (1, 1, 0, 0, 0, 0, 0), ["last"])
    plan = plan_batch([StepRequest(0, 63, request)] * 8, LAYERS, (0,))
    monkeypatch.setattr(rank_groups, "CHUNK", 63 * 3)
    made = rank_groups.rank_groups(plan.cuts, plan.num_rows, BLOCK, False, CPU)[2]
    assert [len(group.places) for group in made] == [3, 3, 2]
    assert np.concatenate([group.places for group in made]).tolist() == list(range(8))
