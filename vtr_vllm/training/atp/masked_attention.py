"""A pass with a soft mask on the vision tokens.

A layer computes e^a G / sum(e^a G), with G_ij the weight of token j and G_ii = 1, as Dynamic-LLaVA does:
log G is the bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtr_vllm.atp.module import (
    AtpModules,
    Kept,
    Masking,
    all_kept,
    cross_scores,
    self_scores,
)
from vtr_vllm.training.attention import Rows, causal_bias

__all__ = ["MaskedPass", "look"]


class MaskedPass:
    """A pass in which dropped tokens stay as rows that nobody else sees."""

    def __init__(self, modules: AtpModules, grid: Tensor, rows: Rows, masking: Masking) -> None:
        self._modules, self._grid, self._rows, self._masking = modules, grid, rows, masking
        batch, size = rows.asking.shape
        self._causal = causal_bias(size, rows.asking.device)
        self._bias = self._causal
        self.kept: list[Kept] = [all_kept(batch, rows.vision.shape[1], rows.asking.device)]
        """Before the first cut, and behind each."""

    def bias(self, _layer: int) -> Tensor:
        """The same for all layers between two cuts."""
        return self._bias

    def looks_at(self, layer: int) -> bool:
        """Whether a cut lies before the next layer."""
        return layer + 1 in self._modules.layers

    def look(self, layer: int, attention: Tensor, values: Tensor) -> None:
        """Decide at the cut behind ``layer``."""
        index = self._modules.layers.index(layer + 1)
        kept = look(
            self._modules,
            index,
            attention,
            values,
            self._rows,
            self._grid,
            self.kept[-1],
            self._masking,
        )
        self.kept.append(kept)
        batch, size = self._rows.asking.shape
        log_g = torch.zeros(batch, size, device=attention.device).scatter(
            1, self._rows.vision, kept.log_weight
        )
        itself = torch.eye(size, dtype=torch.bool, device=attention.device)
        self._bias = torch.where(itself, 0.0, self._causal + log_g[:, None, None, :])


def look(
    modules: AtpModules,
    index: int,
    attention: Tensor,
    values: Tensor,
    rows: Rows,
    grid: Tensor,
    before: Kept,
    masking: Masking,
) -> Kept:
    """The decision of the ``index``-th cut; ``attention`` and ``values`` as a ``Pass`` is shown them."""
    batch = torch.arange(len(attention), device=attention.device)
    seen = attention.gather(2, rows.vision[:, None, :].expand(-1, attention.shape[1], -1))
    among = seen.gather(1, rows.vision[:, :, None].expand(-1, -1, rows.vision.shape[1]))
    cut = modules.cut(index)
    state = values[batch, :, rows.last].flatten(1).float() if cut.shape.state else None
    received, asked = self_scores(among, before.weight), cross_scores(seen, rows.asking)
    kept: Kept = cut(received, asked, state, grid, before, masking)
    return kept
