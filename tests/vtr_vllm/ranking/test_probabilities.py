"""Attention probabilities: the definition, and how little of them is held at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from tests.vtr_vllm.ranking.by_itself import attention_received, score
from tests.vtr_vllm.ranking.given import (
    HEADS,
    KV_HEADS,
    PREFIX,
    ROWS,
    VISION,
    alone,
    at_rows,
    inputs,
)
from vtr_vllm.ranking import RankRule
from vtr_vllm.ranking.attention import Heads
from vtr_vllm.ranking.probabilities import TILE_BYTES, received_together

ASKING = [("last", 1), ("instruction", 4)]
OPTIONS = ["", "-norope", "-max", "-norope-max"]


def behind(given, queries):
    """The last rows of a prompt."""
    return torch.arange(given.prompt_rows - queries, given.prompt_rows)


def by_hand(given, attention, queries, heads, weights=None):
    """Attention from the last ``queries`` prompt rows: one query, one head at a time, float64."""
    query = attention.query.double().numpy()
    key = attention.key.double().numpy()
    received = np.zeros((queries, given.prompt_rows))
    for i, row in enumerate(range(given.prompt_rows - queries, given.prompt_rows)):
        seen = key[: attention.prefix + row + 1]
        by_head = []
        for head in range(HEADS):
            logits = seen[:, head // (HEADS // KV_HEADS)] @ query[row, head] * attention.scale
            weight = np.exp(logits - logits.max())
            by_head.append((weight / weight.sum())[attention.prefix :])
        merged = np.max(by_head, 0) if heads == "max" else np.average(by_head, 0, weights)
        received[i, : len(merged)] = merged
    rows = np.zeros(len(given.vision))
    rows[: given.prompt_rows] = received.mean(0)
    return rows


def check(given, rule, queries):
    rotated = given.attention
    attention = rotated if "norope" not in rule else rotated.unrotated()
    expected = by_hand(given, attention, queries, "max" if rule.endswith("max") else "mean")
    scores = score(RankRule.parse(rule), given)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("generated", "prefix"), [(0, 0), (3, PREFIX)])
@pytest.mark.parametrize(("rule", "queries"), ASKING)
def test_a_score_is_the_true_probability(rule, queries, generated, prefix, option):
    """Softmax over every key that a query sees, cached prefix and text included; causal."""
    check(inputs(generated, prefix), rule + option, queries)


@pytest.mark.parametrize(("rule", "queries"), ASKING)
@pytest.mark.parametrize("option", ["", "-norope"])
def test_heads_count_as_their_weights_say(rule, queries, option):
    given = inputs()
    attention = given.attention.unrotated() if option else given.attention
    expected = by_hand(given, attention, queries, "mean", [9, 0, 2, 1])
    scores = score(RankRule.parse(f"{rule}{option}:9021"), given)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "weights"), [("last-prior", None), ("last-prior:9021", [9, 0, 2, 1])]
)
def test_what_a_null_text_looks_at_is_taken_away(rule, weights):
    """Of the four rows behind the images the first stands for it."""
    given = inputs()
    last = by_hand(given, given.attention, 1, "mean", weights)
    before = replace(given, prompt_rows=given.prompt_rows - 3)
    null = by_hand(before, given.attention, 1, "mean", weights)
    scores = score(RankRule.parse(rule), given)
    np.testing.assert_allclose(scores.numpy(), last - null, rtol=1e-5, atol=1e-7)


def test_a_question_of_one_token_has_no_null_text():
    given = replace(inputs(), instruction_rows=1)
    last, less = (score(RankRule.parse(rule), given) for rule in ("last", "last-prior"))
    assert torch.equal(last, less)


@pytest.mark.parametrize(("rule", "queries"), ASKING)
def test_dropped_tokens_are_no_longer_seen(rule, queries):
    left = torch.tensor([row for row, number in enumerate(VISION) if number not in (1, 4, 5)])
    check(at_rows(inputs(), left), rule, queries)


def test_max_and_mean_over_heads_differ_as_they_should():
    """One head that stares at a token wins under max; many that glance at another, under mean."""
    given = inputs()
    first, second = 7, 12
    key = torch.zeros_like(given.attention.key)
    key[first, :, 0] = key[second, :, 1] = 10.0
    query = torch.zeros_like(given.attention.query)
    query[19, 0, 0] = 2.0
    query[19, 1:, 1] = 1.0
    staged = replace(given, attention=replace(given.attention, query=query, key=key))
    largest, average = (score(RankRule.parse(rule), staged) for rule in ("last-max", "last"))
    assert largest[first] > largest[second]
    assert average[first] < average[second]


@pytest.mark.parametrize("heads", get_args(Heads))
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1])
def test_heads_of_other_ranks_are_merged_before_queries_are_averaged(heads, tile_bytes):
    """Two ranks with half of the heads each give what one rank with all of them gives."""
    given = inputs()
    whole = given.attention
    merged_by_rank = []
    for rank in range(2):
        merged_by_rank.append([])

        def catch(merged, how, kept=merged_by_rank[-1]):
            assert how == heads
            kept.append(merged)
            return merged

        part = replace(
            whole,
            query=whole.query[:, 2 * rank : 2 * rank + 2],
            key=whole.key[:, rank : rank + 1],
            combine=catch,
        )
        attention_received(given, part, behind(given, 4), heads, tile_bytes)
    turns = iter(zip(*merged_by_rank, strict=True))

    def combine(merged, how):
        both = torch.stack(next(turns))
        return both.amax(0) if how == "max" else both.mean(0)

    together = attention_received(
        given, replace(part, combine=combine), behind(given, 4), heads, tile_bytes
    )
    torch.testing.assert_close(together, attention_received(given, whole, behind(given, 4), heads))


def test_half_precision_is_ranked_in_float32():
    given = inputs()
    whole = given.attention
    half = replace(whole, query=whole.query.bfloat16(), key=whole.key.bfloat16())
    exact = replace(whole, query=half.query.float(), key=half.key.float())
    rule = RankRule.parse("last")
    assert torch.equal(
        score(rule, replace(given, attention=half)), score(rule, replace(given, attention=exact))
    )


@pytest.mark.parametrize("chunk", [3, ROWS])
def test_vectors_are_turned_by_their_place_among_the_keys(chunk):
    """The i-th key of all, and the query of its row alike: here each by a factor of its own."""
    given = inputs(generated=2, prefix=PREFIX)
    whole = given.attention
    factor = torch.linspace(0.5, 2.0, len(whole.key))[:, None, None]

    def turn(vectors, place):
        return vectors.float() * factor[place : place + len(vectors)]

    turned = replace(whole, query=whole.query * factor[PREFIX:], key=whole.key * factor)
    torch.testing.assert_close(
        attention_received(given, replace(whole, turn=turn), behind(given, 4), "mean", 1, chunk),
        attention_received(given, turned, behind(given, 4), "mean"),
    )


@drawn(
    rows=st.integers(1, 60),
    queries=st.integers(1, 60),
    prefix=st.integers(0, 30),
    generated=st.integers(0, 5),
    tile=st.integers(1, 70),
    chunk=st.integers(1, 100),
    heads=st.sampled_from(get_args(Heads)),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_tiles_change_no_result(rows, queries, prefix, generated, tile, chunk, heads, seed):
    queries = min(queries, rows)
    draw = torch.Generator().manual_seed(seed)
    given = replace(
        inputs(), prompt_rows=rows, vision=torch.zeros(rows + generated, dtype=torch.int64)
    )
    attention = replace(
        given.attention,
        prefix=prefix,
        query=3 * torch.randn(rows + generated, HEADS, 8, generator=draw),
        key=torch.randn(prefix + rows + generated, KV_HEADS, 8, generator=draw),
    )
    tile_bytes = 4 * HEADS * (prefix + rows) * tile
    whole = attention_received(given, attention, behind(given, queries), heads)
    tiled = attention_received(given, attention, behind(given, queries), heads, tile_bytes, chunk)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-8)


def test_a_long_instruction_holds_no_more_than_two_tiles(monkeypatch):
    """And one tile is at most the bound, or one query's logits."""
    seen = []
    stock = torch.Tensor.softmax

    def softmax(logits, dim):
        seen.append(logits.numel() * logits.element_size())
        return stock(logits, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", softmax)
    given = inputs()
    for tile_bytes in (1, 4 * HEADS * ROWS, 3 * 4 * HEADS * ROWS + 5, TILE_BYTES):
        seen.clear()
        attention_received(given, given.attention, behind(given, 10), "mean", tile_bytes)
        assert max(seen) <= max(tile_bytes, 4 * HEADS * ROWS)
        per_tile = min(10, max(1, tile_bytes // (4 * HEADS * ROWS)))
        assert len(seen) == -(-10 // per_tile)


def test_what_a_query_gives_its_own_key_does_not_count():
    """One head, three keys, the last two ask: what is left is what they give to others."""
    query = torch.tensor([[0.0], [1.0], [2.0]]).view(1, 1, 3, 1, 1)
    key = torch.tensor([[1.0], [2.0], [0.5]]).view(1, 1, 3, 1)
    own = torch.tensor([[1, 2]])
    given = {"last": own, "share": torch.ones(1, 2)}
    asked = query[:, :, 1:]
    whole = received_together(asked, key, 1.0, "mean", alone, **given)
    others = received_together(asked, key, 1.0, "mean", alone, itself=own, **given)
    second = torch.tensor([1.0, 2.0]).softmax(0)
    third = torch.tensor([2.0, 4.0, 1.0]).softmax(0)
    torch.testing.assert_close(whole[0], torch.tensor([*second, 0.0]) + third)
    torch.testing.assert_close(others[0], torch.tensor([second[0] + third[0], third[1], 0.0]))
    tiled = received_together(asked, key, 1.0, "mean", alone, itself=own, tile_bytes=1, **given)
    torch.testing.assert_close(tiled, others)
