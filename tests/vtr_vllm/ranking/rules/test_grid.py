from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rules.grid import Grid


def order(rows, columns):
    """Cells (row, column), the best first."""
    size = rows * columns
    (scores,) = Grid().score_images(images(torch.arange(size)[None], size, (rows, columns)))
    assert sorted(scores.tolist()) == sorted(-float(place) for place in range(size))
    return [divmod(cell, columns) for cell in scores.argsort(descending=True).tolist()]


def images(tokens, size, grid):
    return ImageInputs(tokens=tokens, size=size, grid=grid, seeds=range(len(tokens)))


def farthest(kept, rows, columns):
    """Largest distance, in rows or columns, of any cell to a kept one."""
    row, column = torch.tensor(kept).T
    away_row = (torch.arange(rows)[:, None] - row).abs()
    away_column = (torch.arange(columns)[:, None] - column).abs()
    return int(torch.maximum(away_row[:, None], away_column[None]).amin(-1).max())


def ideal(count, rows, columns):
    """The least such distance of ``count`` cells: the windows around them must cover the grid."""
    distance = 0
    while math.ceil(rows / (2 * distance + 1)) * math.ceil(columns / (2 * distance + 1)) > count:
        distance += 1
    return distance


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (24, 24), (6, 10), (2, 2), (16, 8)])
def test_a_quarter_is_every_second_row_and_column(rows, columns):
    kept = order(rows, columns)[: rows * columns // 4]
    first_row, first_column = map(min, zip(*kept, strict=True))
    assert first_row < 2
    assert first_column < 2
    every = [(r, c) for r in range(first_row, rows, 2) for c in range(first_column, columns, 2)]
    assert sorted(kept) == every


def test_half_is_a_chequerboard():
    kept = order(6, 8)[:24]
    assert len({(row + column) % 2 for row, column in kept}) == 1


def test_by_hand():
    # Every second row and column, then the cells between them on the diagonal, then the rest.
    assert [divmod(cell, 4) for cell in (5, 15, 7, 13)] == order(4, 4)[:4]
    assert [divmod(cell, 4) for cell in (10, 0, 8, 2)] == order(4, 4)[4:8]
    assert [divmod(cell, 4) for cell in (6, 12, 4, 14, 9, 3, 11, 1)] == order(4, 4)[8:]


@drawn(rows=st.integers(1, 40), columns=st.integers(1, 40), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_number_of_cells_lies_evenly(rows, columns, data):
    count = data.draw(st.integers(1, rows * columns))
    kept = order(rows, columns)[:count]
    assert farthest(kept, rows, columns) <= 2 * ideal(count, rows, columns) + 2


def test_without_a_grid_the_sequence_is_spread_over():
    (scores,) = Grid().score_images(images(torch.arange(64)[None], 64, None))
    for count in (4, 8, 16, 32):
        kept = scores.topk(count).indices.sort().values
        assert set(kept.diff().tolist()) == {64 // count}


def test_tokens_that_are_gone_change_nothing():
    tokens = torch.tensor([[0, 1, 5, 6, 10], [2, 3, 4, 7, 11]])
    scores = Grid().score_images(images(tokens, 12, (3, 4)))
    (whole,) = Grid().score_images(images(torch.arange(12)[None], 12, (3, 4)))
    assert torch.equal(scores, whole[tokens])
