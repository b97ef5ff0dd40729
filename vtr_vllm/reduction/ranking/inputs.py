"""What a rank rule may look at."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vtr_vllm.reduction.request import ReducedRequest


@dataclass(frozen=True)
class Attention:
    """Queries and keys of one request at a rank layer, on this rank's heads.

    With or without rotary positions: the rule of the cut decides which are put here.
    """

    query: torch.Tensor
    """[rows, heads, head_dim]"""
    key: torch.Tensor
    """[prefix + rows, kv_heads, head_dim]: cached or earlier keys first, then this step's."""
    prefix: int
    """Keys that stand before this step's rows."""
    scale: float
    combine: Callable[[torch.Tensor, str], torch.Tensor]
    """Merge a per-rank aggregate over heads across tensor-parallel ranks: (x, "mean"|"max")."""


@dataclass(frozen=True)
class RankInputs:
    """One request at one cut. ``rows`` are its rows just before the cut."""

    request: ReducedRequest
    vision: torch.Tensor
    """[rows] int64: vision-token number, -1 for text."""
    prompt_rows: int
    """Rows of the prompt; rows behind them are generated tokens and never ask."""
    attention: Attention | None = None
    """Only where the rule needs it."""
    embeddings: torch.Tensor | None = None
    """[n_vision, hidden] input embeddings of the vision tokens."""
    cls_attention: torch.Tensor | None = None
    """[n_vision] attention of the vision tower's CLS token."""
    previous: torch.Tensor | None = None
    """[n_vision] scores of the previous cut."""

    def of_tokens(self, scores: torch.Tensor) -> torch.Tensor:
        """Spread scores [n_vision] over the rows."""
        return scores[self.vision.clamp(min=0)]
