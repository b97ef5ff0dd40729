"""A pass in which an image's own tokens are gone from one layer on, and its registers stay."""

from __future__ import annotations

import torch
from torch import Tensor

from vtr_vllm.training.attention import Rows, causal_bias

__all__ = ["DroppingPass"]


class DroppingPass:
    """Dropped tokens stay as rows that nobody else sees; of the registers the first ``kept`` stay."""

    def __init__(self, rows: Rows, registers: int, kept: int, layer: int) -> None:
        """``rows.vision`` ``[B, N + registers]``: those of the image, then its registers."""
        batch, size = rows.asking.shape
        device = rows.asking.device
        own = rows.vision.shape[1] - registers
        gone = torch.ones(rows.vision.shape, dtype=torch.bool, device=device)
        gone[:, own : own + kept] = False
        hidden = torch.zeros(batch, size, device=device).scatter(
            1, rows.vision, torch.where(gone, -torch.inf, 0.0)
        )
        self._layer = layer
        self._before = causal_bias(size, device)
        # A row sees itself: with nothing at all to see a softmax is no number.
        itself = torch.eye(size, dtype=torch.bool, device=device)
        self._behind = torch.where(itself, 0.0, self._before + hidden[:, None, None, :])

    def bias(self, layer: int) -> Tensor:
        return self._before if layer < self._layer else self._behind

    def looks_at(self, _layer: int) -> bool:
        return False

    def look(self, _layer: int, _attention: Tensor, _values: Tensor) -> None:
        """Never asked for."""
