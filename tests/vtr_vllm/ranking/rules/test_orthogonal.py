from __future__ import annotations

import pytest
import torch

from tests.vtr_vllm.ranking.rules.states import clustered, orders
from vtr_vllm.ranking.rules.orthogonal import Orthogonal

RULE = Orthogonal()


def exact(rows, most):
    """One token after the other, in float64."""
    left, chosen = rows.double(), []
    for _ in range(most):
        chosen.append(int(left.square().sum(1).argmax()))
        direction = left[chosen[-1]] / left[chosen[-1]].norm()
        left = left - (left @ direction)[:, None] * direction
    return chosen


def unexplained(rows, chosen):
    """Share of all squares that is outside of the span of the chosen rows."""
    rows = rows.double()
    basis, _ = torch.linalg.qr(rows[chosen].T)
    return 1 - float((rows @ basis).square().sum() / rows.square().sum())


def test_by_hand():
    """(4, 0, 0) first; (5, 1, 0) less its part along it is 1 long, (0, 3, 0) is 3 long; then (0, 0, 2)."""
    rows = [[4, 0, 0], [3, 1, 0], [0, 3, 0], [0, 0, 2], [1, 1, 0], [2, 0, 0]]
    # What is explained stands by number behind.
    assert orders(RULE, torch.tensor([rows]).bfloat16()) == [[0, 2, 3, 1, 4, 5]]


def test_equal_rows_stand_by_number():
    rows = torch.tensor([[[1.0, 2.0]] * 5 + [[2.0, -1.0]] * 2 + [[0.0, 0.0]]])
    assert orders(RULE, rows) == [[0, 5, 1, 2, 3, 4, 6, 7]]
    assert orders(RULE, torch.zeros(1, 50, 8)) == [list(range(50))]


def test_few_tokens_are_in_exact_order():
    rows = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(0))
    assert orders(RULE, rows) == [exact(image, 16) for image in rows]


@pytest.mark.parametrize(
    ("tokens", "hidden", "clusters", "noise"),
    [(600, 64, 20, 0.3), (600, 256, 100, 0.05), (600, 256, 300, 0.1), (576, 1024, 300, 0.3)],
)
def test_blocks_explain_as_much_as_single_steps(tokens, hidden, clusters, noise):
    rows = clustered(tokens, hidden, clusters, noise)
    (order,) = orders(RULE, rows[None])
    greedy = exact(rows, min(tokens // 4, hidden))
    for share in (40, 20, 10, 4):
        most = min(tokens // share, hidden - 1)
        best = unexplained(rows, greedy[:most])
        assert unexplained(rows, order[:most]) <= 1.1 * best + 1e-4
