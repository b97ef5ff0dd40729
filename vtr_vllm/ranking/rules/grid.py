"""Even spread over the image."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs

if TYPE_CHECKING:
    import torch

_CELL = ((0, 2), (3, 1))
"""Of 2 x 2 neighbours, which comes when: the diagonal first, so that half of a grid is a chequerboard."""


class Grid(ImageRule):
    """However many tokens are kept, they lie evenly over the image's rows and columns.

    Uniform strides as in the spatial pruning of ATP-LLaVA (arXiv 2412.00447), for every number of
    tokens at once and nested: a quarter of an even grid is every second row and column, a sixteenth
    every fourth. Where there is no grid, evenly over the sequence.
    """

    name = "grid"

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        from vtr_vllm.upload import upload

        scores = upload(-even_order(images).float(), images.tokens.device)
        return images.there(scores.expand(len(images.tokens), -1))


def even_order(images: ImageInputs) -> torch.Tensor:
    """[N] int64, on the host: the place of each token when an image is covered evenly, at any number."""
    return _places(*(images.grid or (1, images.size)))


@lru_cache(maxsize=256)
def _places(rows: int, columns: int) -> torch.Tensor:
    """[rows * columns] int64: the place of each cell, by ordered dithering.

    The lowest bits of a cell's row and column, counted from an origin, decide first: with each bit
    that is left out, the lattice of those that come first has twice the stride.
    """
    import torch

    row = torch.arange(rows)[:, None] - _origin(rows)
    column = torch.arange(columns)[None] - _origin(columns)
    cell = torch.tensor(_CELL)
    keys = torch.zeros(rows, columns, dtype=torch.int64)
    for bit in range((max(rows, columns) - 1).bit_length()):
        keys = 4 * keys + cell[row >> bit & 1, column >> bit & 1]
    order = keys.flatten().argsort()
    return order.argsort()


def _origin(size: int) -> int:
    """The place in [0, size) through which lattices of every stride cover that range best."""
    import torch

    origins = torch.arange(size)
    uncovered = torch.zeros(size)
    for stride in (1 << bit for bit in range(1, (size - 1).bit_length() + 1)):
        # The farthest place is between two of a lattice's points, or before or behind all.
        ends = torch.maximum(origins % stride, (size - 1 - origins) % stride)
        uncovered += ends.clamp(min=stride // 2) / stride
    return int(uncovered.argmin())
