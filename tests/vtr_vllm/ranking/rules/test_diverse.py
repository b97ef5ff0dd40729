from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.vtr_vllm.ranking.rules.states import clustered, orders
from vtr_vllm.ranking.rules.diverse import Diverse

RULE = Diverse()


def distances(rows):
    directions = normalize(rows.double(), dim=-1)
    return 1 - directions @ directions.T


def exact(rows, most):
    """One token after the other, in float64."""
    apart = distances(rows)
    mean = normalize(rows.double().mean(0), dim=0)
    chosen = [int((normalize(rows.double(), dim=-1) @ mean).argmin())]
    nearest = apart[chosen[0]].clone()
    while len(chosen) < most:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, apart[chosen[-1]])
    return chosen


def test_by_hand():
    """Directions in degrees; lengths mean nothing but to the mean."""
    turned = [(0, 9), (10, 1), (100, 1), (60, 2), (33, 1), (10, 4)]
    rows = [
        [length * math.cos(math.radians(angle)), length * math.sin(math.radians(angle))]
        for angle, length in turned
    ]
    # 100 is farthest from the mean, and 0 from 100. Then 60 is 40 from its nearest, 33 27 from its,
    # and 10 10. The last is as 10 is.
    assert orders(RULE, torch.tensor([rows])) == [[2, 0, 3, 4, 1, 5]]


def test_equal_rows_stand_by_number():
    rows = torch.tensor([[[1.0, 2.0]] * 5 + [[2.0, -1.0], [4.0, -2.0]]])
    assert orders(RULE, rows) == [[5, 0, 1, 2, 3, 4, 6]]
    assert orders(RULE, torch.ones(1, 50, 8)) == [list(range(50))]
    assert orders(RULE, torch.zeros(1, 50, 8)) == [list(range(50))]


def test_few_tokens_are_in_exact_order():
    rows = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(0))
    assert orders(RULE, rows) == [exact(image, 16) for image in rows]


@pytest.mark.parametrize(
    ("tokens", "hidden", "clusters", "noise"),
    [(600, 64, 20, 0.3), (600, 64, 100, 0.1), (600, 256, 100, 0.3), (576, 512, 600, 0.5)],
)
def test_blocks_are_as_far_apart_as_single_steps(tokens, hidden, clusters, noise):
    rows = clustered(tokens, hidden, clusters, noise)
    (order,) = orders(RULE, rows[None])
    greedy = exact(rows, tokens // 2)
    apart = distances(rows)
    for share in (20, 10, 4, 2):
        mine, best = order[: tokens // share], greedy[: tokens // share]
        covered, of_best = (apart[:, chosen].amin(1).mean() for chosen in (mine, best))
        assert covered <= 1.05 * of_best
        least, at_best = (closest(apart, chosen) for chosen in (mine, best))
        assert least >= 0.7 * at_best


def closest(apart, chosen):
    return (apart[chosen][:, chosen] + 9 * torch.eye(len(chosen))).min()
