"""What the rules that choose greedily share: blocks, parts, and how little a device is given to do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from tests.vtr_vllm.engine.operations import Operations
from tests.vtr_vllm.ranking.rules.states import clustered, images, orders
from vtr_vllm.ranking import greedy
from vtr_vllm.ranking.greedy import Rows, blocks
from vtr_vllm.ranking.rules.diverse import Diverse
from vtr_vllm.ranking.rules.orthogonal import Orthogonal

BOTH = [Orthogonal(), Diverse()]


@drawn(most=st.integers(0, 40_000))
def test_blocks_are_at_most_a_fifth_of_what_is_then_taken(most):
    taken = 0
    for block in blocks(most):
        taken += block
        assert block == 1 or 5 * block <= taken
    assert taken == most


@pytest.mark.parametrize("rule", BOTH, ids=str)
@drawn(tokens=st.integers(1, 150), seed=st.integers(0, 99), place=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_an_image_is_ordered_the_same_whichever_stand_beside_it(rule, tokens, seed, place):
    draw = torch.Generator().manual_seed(seed)
    own = clustered(tokens, 40, 30, 0.3, seed)
    beside = [torch.randn(3, tokens, 40, generator=draw) * 10**exponent for exponent in (0, 3)]
    for states in beside:
        states[place] = own
    first, second = (orders(rule, states.bfloat16())[place] for states in beside)
    assert first == second


@pytest.mark.parametrize("rule", BOTH, ids=str)
def test_an_image_is_ordered_as_it_is_alone(rule):
    """But for what is as good as equal: products round differently in kernels for more of them."""
    states = torch.stack([clustered(150, 200, 90, 0.3, seed) for seed in range(4)]).bfloat16()
    for together, image in zip(orders(rule, states), states, strict=True):
        assert alike(together, orders(rule, image[None])[0])


def alike(first, second):
    """Whether the best are nearly the same tokens, however many they are."""
    counts = range(10, len(first), 10)
    return all(len({*first[:most]} & {*second[:most]}) >= 0.9 * most for most in counts)


@pytest.mark.parametrize("rule", BOTH, ids=str)
@drawn(
    tokens=st.integers(1, 200),
    rank=st.integers(0, 12),
    copies=st.integers(1, 9),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rows_of_any_rank_and_size_are_ordered(rule, tokens, rank, copies, exponent, seed):
    """``orders`` holds that the scores are a permutation. Rows that are much alike, of lengths from
    1e-6 to 1e6 and a few a thousand times as long as the others, as deep layers have them."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, rank, generator=draw) @ torch.randn(rank, 16, generator=draw)
    rows[::copies] = rows[:1].clone()
    rows[seed % tokens] *= 1000
    (order,) = orders(rule, (rows * 10.0**exponent)[None])
    # The best span all that there is.
    if rule.name == "orthogonal" and copies == 1 and tokens > 60:
        best = rows[order[: rank + 8]].double()
        assert torch.linalg.matrix_rank(best, rtol=1e-6) == torch.linalg.matrix_rank(
            rows.double(), rtol=1e-6
        )


@pytest.mark.parametrize("rule", BOTH, ids=str)
def test_parts_change_nothing(rule, monkeypatch):
    states = torch.stack([clustered(90, 200, 60, 0.3, seed) for seed in range(5)]).bfloat16()
    whole = orders(rule, states)
    for rows in (200, 90, 40, 1):
        monkeypatch.setattr(greedy.Rows.__init__, "__defaults__", (4 * 200 * rows,))
        assert all(map(alike, orders(rule, states), whole))


@pytest.mark.parametrize("rows", [1, 7, 10, 20, 100])
def test_no_more_than_a_part_is_in_float32_at_a_time(rows):
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(3, 10, 16, generator=draw).bfloat16()
    vectors = torch.randn(3, 2, 16, generator=draw)
    held = []
    parts = Rows(states, part_bytes=4 * 16 * rows)
    products = parts.times(vectors, lambda part: held.append(part[..., 0].numel()) or part)
    assert max(held) <= rows
    torch.testing.assert_close(products, states.float() @ vectors.mT)
    torch.testing.assert_close(parts.mean(), states.float().mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("rule", "tokens", "hidden", "most"),
    [
        (Orthogonal(), 16, 64, 380),
        (Orthogonal(), 576, 64, 700),
        (Orthogonal(), 576, 4096, 1100),
        (Orthogonal(), 16_000, 64, 700),
        (Orthogonal(), 16_000, 4096, 1750),
        (Diverse(), 16, 64, 40),
        (Diverse(), 576, 64, 40),
        (Diverse(), 2048, 4096, 40),
        (Diverse(), 16_000, 64, 1700),
        (Diverse(), 16_000, 4096, 2400),
    ],
    ids=str,
)
def test_what_a_device_is_given_to_do_hardly_grows(rule, tokens, hidden, most):
    """Without numbers: so nothing can wait for one."""
    states = torch.empty(1, tokens, hidden, dtype=torch.bfloat16, device="meta")
    with Operations() as operations:
        rule.score_images(images(states))
    assert operations.counts.total() <= most
