from __future__ import annotations

import pytest
import torch

from tests.vtr_vllm.ranking.rules.states import clustered
from vtr_vllm.ranking import pairs
from vtr_vllm.ranking.distances import Distances
from vtr_vllm.ranking.greedy import greedy_scores
from vtr_vllm.ranking.pairs import farthest_first, farthest_first_scores


def test_each_next_one_adds_most():
    """Four tokens on a line, the first of two images; in the other all are at the same distance."""
    line = torch.tensor([0.0, 1.0, 4.0, 6.0])
    apart = torch.stack([(line[:, None] - line).abs(), 1 - torch.eye(4)])
    first = torch.tensor([[0.1, 0.2, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5]])
    found, adds, left = farthest_first(apart, first, 3)
    assert found.tolist() == [[1, 3, 2], [0, 1, 2]]
    torch.testing.assert_close(adds, torch.tensor([[0.2, 5.0, 2.0], [0.5, 1.0, 1.0]]))
    assert left.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert torch.equal(first[1], torch.full((4,), 0.5))  # as it was


def test_the_operator_is_whole():
    apart = torch.rand(2, 9, 9)
    checks = torch.library.opcheck(farthest_first, (apart, torch.rand(2, 9), 5))
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 300])
def test_the_first_are_those_of_single_steps_by_rows(tokens):
    """Where blocks take one at a time, too: 16 of them, and then as far apart."""
    states = torch.stack([clustered(tokens, 48, 40, 0.5, seed) for seed in range(3)])
    distances = Distances(states)
    in_blocks = greedy_scores(distances, distances.most)
    first = min(tokens, 16)
    best = (scores.topk(first).indices for scores in (farthest_first_scores(states), in_blocks))
    assert torch.equal(*best)


def test_parts_change_nothing(monkeypatch):
    states = torch.stack([clustered(60, 48, 40, 0.5, seed) for seed in range(5)])
    whole = farthest_first_scores(states)
    monkeypatch.setattr(pairs, "PAIRS_BYTES", 2 * 4 * 60 * 60)
    assert torch.equal(farthest_first_scores(states), whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none_reach_no_kernel(monkeypatch, bad):
    """Triton's argmax passes them over, and would find the padding behind the tokens."""
    given = []

    def noted(*arguments):
        given.extend(arguments[:2])
        return farthest_first(*arguments)

    monkeypatch.setattr(pairs, "farthest_first", noted)
    states = torch.stack([clustered(17, 48, 40, 0.5, seed) for seed in range(3)])
    whole = farthest_first_scores(states.clone())
    states[1, 4] = bad
    scores = farthest_first_scores(states)
    assert all(each.isfinite().all() for each in given)
    assert scores.isfinite().all()
    assert torch.equal(scores[[0, 2]], whole[[0, 2]]), "of its neighbours"
