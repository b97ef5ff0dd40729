"""The ATP module of one cut: scores of the vision tokens, two thresholds, and which tokens stay.

Plain torch on tensors. ``B`` instances, ``N`` vision tokens of each (one image), ``R`` rows of the
decoder, ``W`` width of the question's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "OFF_GRID",
    "AtpCut",
    "AtpModules",
    "Kept",
    "Masking",
    "Shape",
    "all_kept",
    "cross_scores",
    "grid_scores",
    "mean_received",
    "normalised",
    "pooled",
    "self_scores",
]

Mode = Literal["soft", "straight-through", "hard"]

OFF_GRID = -100.0
"""Spatial score of a token on no grid: below every threshold, and finite for the gradients' sake."""
STRIDES = (4, 3, 2)
"""Of the grids, the coarsest first."""
SAMPLING = 3.0
"""The lambda of eq. 5, which the densest grid of a third would bring to 0."""
MARGIN = 0.5
"""Thresholds lie in (-MARGIN, 1 + MARGIN), so that a soft mask can let all tokens in, or none."""
_START = -4.0  # logit of both thresholds of an untrained cut: .036 above the lowest
_FLOOR = 1e-6  # of a dropped token's weight where gradients must pass through it
_SEEN = 1e-6  # less weight of later tokens than this is nobody who looks


def self_scores(attention: Tensor, weight: Tensor) -> Tensor:
    """Eq. 3: the attention that a vision token receives of later ones, ``[B, N]``.

    ``attention``: ``[B, N, N]``, softmax, mean over heads, queries first. ``weight``: ``[B, N]``, in
    [0, 1], how much of a token is still there.
    """
    size = attention.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=attention.device).tril(-1)
    return mean_received((attention * (weight[:, :, None] * later)).sum(1), weight)


def mean_received(received: Tensor, weight: Tensor) -> Tensor:
    """Eq. 3 of what a vision token receives of all later ones together, ``[B, N]``.

    The mean over those that see a token, since under the causal mask an early one is seen by more. A token
    that nobody sees gets the mean of the others.
    """
    behind = functional.pad(weight.flip(-1)[:, :-1], (1, 0))
    seen = behind.cumsum(-1).flip(-1)
    is_seen = seen > _SEEN
    scores = torch.where(is_seen, received / seen.clamp(min=_SEEN), 0.0)
    there = is_seen * weight
    mean = (scores * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=_SEEN)
    return torch.where(is_seen, scores, mean)


def cross_scores(attention: Tensor, asking: Tensor) -> Tensor:
    """Eq. 4: the mean attention that the question pays to each vision token, ``[B, N]``.

    ``attention``: ``[B, R, N]``, softmax, mean over heads. ``asking``: bool ``[B, R]``, at least one
    row of each instance.
    """
    asks = asking.to(attention.dtype)
    return torch.einsum("br,brn->bn", asks, attention) / asks.sum(-1, keepdim=True)


def normalised(scores: Tensor, alive: Tensor) -> Tensor:
    """Scores of the tokens alive brought to [0, 1] per instance, others 0: ``[B, N]``.

    Without this a threshold in (0, 1) drops all, as attention is near 1/N. Equal scores become 0.
    """
    low = scores.masked_fill(~alive, math.inf).amin(-1, keepdim=True)
    high = scores.masked_fill(~alive, -math.inf).amax(-1, keepdim=True)
    span = high - low
    safe = torch.where(span > 0, span, torch.ones_like(span))
    scaled = torch.where(alive, (scores - low) / safe, 0.0)
    return scaled.clamp(0, 1)


def grid_scores(rows: int, columns: int) -> Tensor:
    """Eq. 5: the spatial score of each cell of a ``rows x columns`` image, ``[rows * columns]``.

    1 - 3R, R the share of the coarsest grid that the cell lies on (1/16, 1/9, 1/4), so that the
    threshold chooses the densest grid that stays; cells on none have ``OFF_GRID``. The grid of stride
    4 lies inside that of stride 2, that of stride 3 in neither.
    """
    scores = torch.full((rows, columns), OFF_GRID, dtype=torch.float32)
    for stride in reversed(STRIDES):  # coarser ones write last
        first = 1 if stride > 1 and min(rows, columns) > 1 else 0
        scores[first::stride, first::stride] = 1 - SAMPLING / stride**2
    return scores.flatten()


def pooled(scores: Tensor, weight: Tensor, bins: int) -> Tensor:
    """Means of the scores over ``bins`` equal parts of the sequence, ``[B, bins]``; empty ones 0."""
    size = scores.shape[-1]
    place = torch.arange(size, device=scores.device) * bins // size
    into = functional.one_hot(place, bins).to(scores.dtype)
    total = weight @ into
    return (weight * scores) @ into / total.clamp(min=_SEEN)


@dataclass(frozen=True)
class Shape:
    """Sizes of one cut's network: bins of each score, width of the question's state or 0, of z."""

    bins: int = 16
    state: int = 0
    width: int = 32


@dataclass(frozen=True)
class Masking:
    """How a threshold becomes a mask.

    ``soft``: the sigmoid. ``straight-through``: the decision forwards, the sigmoid's gradient
    backwards. ``hard``: the decision.
    """

    mode: Mode
    temperature: float = 1.0
    n_min: int = 1
    """The fewest tokens that a decision leaves."""


@dataclass(frozen=True)
class Kept:
    """Which vision tokens are there behind a cut, and how it was decided."""

    weight: Tensor
    """``[B, N]`` in [0, 1]: the product of the masks of all cuts so far."""
    log_weight: Tensor
    """Its logarithm, which attention logits gain; -inf only where the mode is hard."""
    alive: Tensor
    """bool ``[B, N]``: the decision itself, in every mode."""
    scores: Tensor
    """``[B, N]``: S of this cut."""
    thresholds: Tensor
    """``[B, 2]``: theta_r and theta_s of this cut."""

    @property
    def share(self) -> Tensor:
        """``[B]``: the share of the image's tokens that is there."""
        return self.weight.mean(-1)


def all_kept(batch: int, tokens: int, device: torch.device | None = None) -> Kept:
    """Before the first cut."""
    zeros = torch.zeros(batch, tokens, device=device)
    return Kept(
        weight=torch.ones_like(zeros),
        log_weight=zeros,
        alive=torch.ones_like(zeros, dtype=torch.bool),
        scores=zeros,
        thresholds=torch.full((batch, 2), -MARGIN, device=device),
    )


class AtpCut(nn.Module):
    """The module of one cut: pooled scores, and the question's state, to theta_r and theta_s."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.state_norm = nn.LayerNorm(shape.state) if shape.state else None
        self.hidden = nn.Linear(2 * shape.bins + shape.state, shape.width)
        self.heads = nn.Linear(shape.width, 2)
        nn.init.normal_(self.heads.weight, std=0.01)
        nn.init.constant_(self.heads.bias, _START)

    def thresholds(
        self, own: Tensor, cross: Tensor, weight: Tensor, state: Tensor | None
    ) -> Tensor:
        """Eqs. 6 to 8: theta_r and theta_s of each instance, ``[B, 2]``, in (-MARGIN, 1 + MARGIN).

        ``own``, ``cross``: ``[B, N]`` normalised scores. ``state``: ``[B, W]`` of the question.
        """
        features = [pooled(scores, weight, self.shape.bins) for scores in (own, cross)]
        if self.state_norm is not None:
            if state is None:
                raise ValueError(f"the heads read a question's state of {self.shape.state}")
            features.append(self.state_norm(state))
        z = functional.gelu(self.hidden(torch.cat(features, -1)))
        return torch.sigmoid(self.heads(z)) * (1 + 2 * MARGIN) - MARGIN

    def forward(
        self,
        received: Tensor,
        asked: Tensor,
        state: Tensor | None,
        grid: Tensor,
        before: Kept,
        masking: Masking,
    ) -> Kept:
        """Decide on the tokens that are there ``before``.

        ``received``, ``asked``: ``[B, N]`` out of ``self_scores`` and ``cross_scores``; ``grid``:
        ``[N]`` out of ``grid_scores``.
        """
        scores, thresholds = self._judge(received, asked, state, before.alive, before.weight)
        redundant, spatial = thresholds.unsqueeze(-2).unbind(-1)  # [B, 1] each
        alive = before.alive & ((scores > redundant) | (grid > spatial))
        alive = _at_least(alive, before.alive, scores, masking.n_min)
        if masking.mode == "hard":
            weight = alive.to(scores.dtype)
            return Kept(weight, weight.log(), alive, scores, thresholds)
        # Eqs. 9 to 11, in logarithms: the larger of the two masks
        log_mask = torch.maximum(
            functional.logsigmoid((scores - redundant) * masking.temperature),
            functional.logsigmoid((grid - spatial) * masking.temperature),
        )
        if masking.mode == "soft":
            log_weight = before.log_weight + log_mask
            return Kept(log_weight.exp(), log_weight, alive, scores, thresholds)
        soft = before.weight * log_mask.exp()
        through = soft - soft.detach()
        decided = alive.to(scores.dtype)
        floored = decided * (1 - _FLOOR) + _FLOOR
        return Kept(decided + through, (floored + through).log(), alive, scores, thresholds)

    def margins(
        self,
        received: Tensor,
        asked: Tensor,
        state: Tensor | None,
        grid: Tensor,
        alive: Tensor,
        n_min: int,
    ) -> Tensor:
        """The hard decision as an order, ``[B, N]``: what is above 0 stays, the highest first.

        By how much a token passes the threshold that it passes best; where too few pass, the best ``n_min``
        stay by S. Of those ``alive`` alone.
        """
        scores, thresholds = self._judge(received, asked, state, alive, alive.to(received.dtype))
        redundant, spatial = thresholds.unsqueeze(-2).unbind(-1)
        margin = torch.maximum(scores - redundant, grid - spatial)
        passes = alive & (margin > 0)
        stays = _at_least(passes, alive, scores, n_min)
        by_score = torch.where(stays, 1 + scores, scores - 2)
        return torch.where(passes.sum(-1, keepdim=True) < n_min, by_score, margin)

    def _judge(
        self, received: Tensor, asked: Tensor, state: Tensor | None, alive: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S ``[B, N]``, and the two thresholds ``[B, 2]``."""
        own, cross = normalised(received, alive), normalised(asked, alive)
        return (own + cross) / 2, self.thresholds(own, cross, weight, state)


class AtpModules(nn.Module):
    """The modules of all cuts; ``layers``: the decoder layer before which each lies, rising from 1."""

    def __init__(self, layers: Sequence[int], shape: Shape) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.shape = shape
        self.cuts = nn.ModuleList(AtpCut(shape) for _ in self.layers)

    def cut(self, index: int) -> AtpCut:
        """The ``index``-th module."""
        found = self.cuts[index]
        assert isinstance(found, AtpCut)
        return found


def _at_least(alive: Tensor, before: Tensor, scores: Tensor, n_min: int) -> Tensor:
    """``alive`` where that leaves ``n_min`` tokens, else the best ``n_min``; ties go to the earlier."""
    ranked = scores.masked_fill(~before, -1.0).sort(dim=-1, descending=True, stable=True).indices
    best = torch.zeros_like(alive).scatter(-1, ranked[:, :n_min], True) & before
    return torch.where(alive.sum(-1, keepdim=True) < n_min, best, alive)
