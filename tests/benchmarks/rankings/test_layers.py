"""Rankings are compared as they are defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.rankings.layers import (
    attention_scores,
    blind_scores,
    in_top,
    overlap_matrix,
    tau_matrix,
)


def test_tau_of_known_rankings() -> None:
    """Of four tokens there are six pairs; one swapped pair gives (5 - 1) / 6, a tie tau-b's root."""
    scores = np.array([[4.0, 3, 2, 1], [40, 30, 20, 10], [1, 2, 3, 4], [4, 3, 1, 2], [4, 3, 2, 2]])
    tau = tau_matrix(scores)
    assert tau[0] == pytest.approx([1, 1, -1, 4 / 6, 5 / (6 * 5) ** 0.5])
    assert np.array_equal(tau, tau.T)


def test_attention_scores_are_the_rules_of_the_package() -> None:
    """One layer, two heads; rows: text, two vision tokens, two of the instruction."""
    attention = torch.zeros(1, 2, 5, 5)
    attention[0, 0, 4, 1:3] = torch.tensor([0.8, 0.2])
    attention[0, 1, 4, 1:3] = torch.tensor([0.0, 0.4])
    attention[0, 0, 3, 1:3] = torch.tensor([0.0, 1.0])
    found = attention_scores(attention, torch.tensor([False, True, True, False, False]))
    assert found["last"][0].tolist() == pytest.approx([0.4, 0.3])
    assert found["last-max"][0].tolist() == pytest.approx([0.8, 0.4])
    assert found["instruction"][0].tolist() == pytest.approx([0.2, 0.4])


def test_blind_scores_rank_what_stands_out() -> None:
    embeddings = torch.zeros(6, 3)
    embeddings[4] = 2.0
    found = blind_scores(embeddings, torch.arange(6.0))
    assert found["saliency"].shape == (1, 6)
    assert found["saliency"].argmax() == 4
    assert found["cls"].argmax() == 5
    assert set(blind_scores(embeddings, None)) == {"saliency"}


def test_the_top_is_what_a_cut_would_keep() -> None:
    scores = np.array([[0.0, 5, 1, 5, 2, 0], [9, 1, 8, 1, 1, 1]])
    kept = in_top(scores, 0.5)
    assert kept.tolist() == [[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    assert overlap_matrix(kept) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1]]))
