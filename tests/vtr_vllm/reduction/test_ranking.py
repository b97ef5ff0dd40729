"""Conformance of every rank rule, and what each of them computes."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from tests.vtr_vllm.reduction.strategies import request_of
from vtr_vllm.reduction.gather import keep_best
from vtr_vllm.reduction.ranking import RULES, Attention, RankInputs, score_rows
from vtr_vllm.schedules import RankRule
from vtr_vllm.schedules.rank_rule import Heads, Score

ATTENTION = [
    RankRule(score, rope, heads)
    for score in ("last", "instruction")
    for rope in (True, False)
    for heads in get_args(Heads)
]
OTHERS = [RankRule(score) for score in ("saliency", "cls", "random", "previous")]

# Two uneven images with text around them; 4 tokens of question; 6 tokens are in the cache.
REQUEST = request_of([[7, 8, 9], [11, 12, 13, 14, 15]], 20, [1, 1, 0.5, 0.25], ["last", "last"])
PREFIX = 6
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
VISION = [REQUEST.vision.tolist().index(p) if p in REQUEST.vision else -1 for p in range(20)]


def alone(merged, heads):
    return merged


def inputs(generated=0, prefix=0, seed=0):
    """All rows of the prompt from ``prefix`` on, and generated rows behind it."""
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(20, HEADS, HEAD_DIM, generator=draw)
    key = torch.randn(20, KV_HEADS, HEAD_DIM, generator=draw)
    own = torch.Generator().manual_seed(1000 + generated)
    more_query = 9 * torch.randn(generated, HEADS, HEAD_DIM, generator=own)
    more_key = 9 * torch.randn(generated, KV_HEADS, HEAD_DIM, generator=own)
    return RankInputs(
        request=REQUEST,
        vision=torch.tensor(VISION[prefix:] + [-1] * generated),
        prompt_rows=20 - prefix,
        attention=Attention(
            query=torch.cat([query[prefix:], more_query]),
            key=torch.cat([key, more_key]),
            prefix=prefix,
            scale=0.3,
            combine=alone,
        ),
        embeddings=torch.randn(8, 16, generator=draw),
        cls_attention=torch.rand(8, generator=draw),
        previous=torch.rand(8, generator=draw),
    )


def at_tokens(scores, given):
    """[n_vision] scores, in the order of the tokens."""
    return scores[given.vision >= 0]


def test_every_score_of_a_schedule_has_its_rule():
    assert set(RULES) == set(get_args(Score))
    assert {rule.score for rule in ATTENTION + OTHERS} == set(RULES)


@pytest.mark.parametrize("rule", ATTENTION + OTHERS, ids=str)
@pytest.mark.parametrize(("generated", "prefix"), [(0, 0), (3, 0), (0, PREFIX), (3, PREFIX)])
def test_scores_are_finite_float32_rows_and_the_same_again(rule, generated, prefix):
    given = inputs(generated, prefix)
    scores = score_rows(given, rule)
    assert scores.shape == (20 - prefix + generated,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert len(set(at_tokens(scores, given).tolist())) > 1
    assert torch.equal(scores, score_rows(inputs(generated, prefix), rule))


@pytest.mark.parametrize("rule", ATTENTION + OTHERS, ids=str)
def test_generated_rows_change_nothing(rule):
    plain, resumed = inputs(), inputs(generated=5)
    torch.testing.assert_close(
        at_tokens(score_rows(plain, rule), plain), at_tokens(score_rows(resumed, rule), resumed)
    )


@pytest.mark.parametrize("rule", ATTENTION + OTHERS, ids=str)
def test_a_warm_prefix_ranks_as_a_cold_one(rule):
    cold, warm = inputs(), inputs(prefix=PREFIX)
    torch.testing.assert_close(
        at_tokens(score_rows(cold, rule), cold), at_tokens(score_rows(warm, rule), warm)
    )


@pytest.mark.parametrize("rule", ATTENTION + OTHERS, ids=str)
def test_tokens_that_earlier_cuts_took_leave_rows_that_still_line_up(rule):
    """Scores of the tokens left; attention sees fewer keys, the others read by token number."""
    given = inputs()
    left = torch.tensor([row for row, number in enumerate(VISION) if number not in (1, 4, 5)])
    kept = replace(
        given,
        vision=given.vision[left],
        prompt_rows=len(left),
        attention=replace(
            given.attention, query=given.attention.query[left], key=given.attention.key[left]
        ),
    )
    scores = score_rows(kept, rule)
    assert scores.shape == (len(left),)
    if rule.needs_attention:
        expected = by_hand(kept, 4 if rule.score == "instruction" else 1, rule.heads)
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-7)
    else:
        full = score_rows(given, rule)
        assert torch.equal(at_tokens(scores, kept), full[left][given.vision[left] >= 0])


def by_hand(given, queries, heads):
    """Attention from the last ``queries`` prompt rows: one query, one head at a time, float64."""
    attention = given.attention
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
        merged = np.max(by_head, 0) if heads == "max" else np.mean(by_head, 0)
        received[i, : len(merged)] = merged
    rows = np.zeros(len(given.vision))
    rows[: given.prompt_rows] = received.mean(0)
    return rows


@pytest.mark.parametrize("heads", get_args(Heads))
@pytest.mark.parametrize(("generated", "prefix"), [(0, 0), (3, PREFIX)])
@pytest.mark.parametrize(("score", "queries"), [("last", 1), ("instruction", 4)])
def test_attention_is_the_true_probability(score, queries, generated, prefix, heads):
    """Softmax over every key that a query sees, cached prefix and text included; causal."""
    given = inputs(generated, prefix)
    expected = by_hand(given, queries, heads)
    scores = score_rows(given, RankRule(score, heads=heads))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_max_and_mean_over_heads_differ_as_they_should():
    """One head that stares at a token wins under max; many that glance at another, under mean."""
    given = inputs()
    first, second = 7, 12
    key = torch.zeros(20, KV_HEADS, HEAD_DIM)
    key[first, :, 0] = key[second, :, 1] = 10.0
    query = torch.zeros(20, HEADS, HEAD_DIM)
    query[19, 0, 0] = 2.0
    query[19, 1:, 1] = 1.0
    staged = replace(given, attention=replace(given.attention, query=query, key=key))
    largest, average = (score_rows(staged, RankRule("last", heads=h)) for h in ("max", "mean"))
    assert largest[first] > largest[second]
    assert average[first] < average[second]


@pytest.mark.parametrize("heads", get_args(Heads))
def test_heads_of_other_ranks_are_merged_before_queries_are_averaged(heads):
    """Two ranks with half of the heads each give what one rank with all of them gives."""
    given = inputs()
    halves = []

    def catch(merged, how):
        assert how == heads
        halves.append(merged)
        return merged

    def combine(merged, how):
        return torch.stack(halves).amax(0) if how == "max" else torch.stack(halves).mean(0)

    rule = RankRule("instruction", heads=heads)
    whole = given.attention
    for rank in range(2):
        part = replace(
            whole,
            query=whole.query[:, 2 * rank : 2 * rank + 2],
            key=whole.key[:, rank : rank + 1],
            combine=catch,
        )
        score_rows(replace(given, attention=part), rule)
    together = score_rows(replace(given, attention=replace(part, combine=combine)), rule)
    torch.testing.assert_close(together, score_rows(given, rule))


def test_half_precision_is_ranked_in_float32():
    given = inputs()
    whole = given.attention
    half = replace(whole, query=whole.query.bfloat16(), key=whole.key.bfloat16())
    exact = replace(whole, query=half.query.float(), key=half.key.float())
    rule = RankRule("last")
    assert torch.equal(
        score_rows(replace(given, attention=half), rule),
        score_rows(replace(given, attention=exact), rule),
    )


def test_saliency_looks_at_each_image_by_itself():
    given = inputs()
    other = given.embeddings.clone()
    other[3:] += 100.0 * torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    moved = replace(given, embeddings=other)
    before, after = (at_tokens(score_rows(g, RankRule("saliency")), g) for g in (given, moved))
    assert torch.equal(before[:3], after[:3])
    assert not torch.isclose(before[3:], after[3:]).any()


def test_saliency_is_the_distance_from_the_median():
    embeddings = torch.ones(8, 16)
    embeddings[3:] = -2.0
    embeddings[1, 0] += 3.0
    embeddings[6, :4] -= 1.0
    given = replace(inputs(), embeddings=embeddings.bfloat16())
    scores = at_tokens(score_rows(given, RankRule("saliency")), given)
    assert scores.tolist() == [0, 3, 0, 0, 0, 0, 2, 0]


def test_random_is_fixed_by_the_seed_and_nests():
    given = inputs()
    rule = RankRule("random")
    scores = score_rows(given, rule)
    other = replace(given, request=replace(REQUEST, seed=REQUEST.seed + 1))
    assert not torch.equal(scores, score_rows(other, rule))
    first = keep_best(scores, given.vision, 12 + 5)
    left = given.vision[first]
    second = first[keep_best(score_rows(replace(given, vision=left), rule), left, 12 + 2)]
    assert second.tolist() == keep_best(scores, given.vision, 12 + 2).tolist()


@pytest.mark.parametrize(("rule", "source"), [("previous", "previous"), ("cls", "cls_attention")])
def test_scores_that_are_given_are_read_by_token(rule, source):
    given = inputs(prefix=PREFIX)
    scores = score_rows(given, RankRule.parse(rule))
    for row, number in enumerate(given.vision.tolist()):
        if number >= 0:
            assert scores[row] == getattr(given, source)[number]
