"""The fewest tokens that hold a share of the attention."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.ranking.mass import fewest_holding


def test_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0, 0.0], [0.2] * 5])
    assert fewest_holding(scores, torch.tensor([0.65, 0.99, 0.5])).tolist() == [2, 1, 3]
    assert fewest_holding(scores, torch.tensor([0.71, 0.01, 0.01])).tolist() == [3, 1, 1]


def test_all_stay_where_nothing_was_looked_at() -> None:
    assert fewest_holding(torch.zeros(1, 4), torch.tensor([0.9])).tolist() == [4]


@given(
    st.lists(st.integers(0, 2**20), min_size=1, max_size=40),
    st.integers(1, 99),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_one_fewer_would_hold_less(weights: list[int], percent: int, padding: int) -> None:
    scores = torch.tensor([weights + [0] * padding], dtype=torch.float32)
    count = fewest_holding(scores, torch.tensor([percent / 100])).item()
    if not any(weights):
        assert count == len(weights) + padding
        return
    best = sorted(weights, reverse=True)
    wanted = torch.tensor(percent / 100).double().item() * sum(weights)
    assert 1 <= count <= len(weights)
    assert sum(best[:count]) >= wanted
    assert count == 1 or sum(best[: count - 1]) < wanted
