"""What training minimises: eqs. 12 to 14."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Losses", "Weights", "governed", "mean_keep", "training_loss"]


@dataclass(frozen=True)
class Weights:
    """Of the terms, and what the mean keep rate should be."""

    atp: float
    target: float
    mean_keep: float


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch; ``total`` carries the gradient."""

    total: Tensor
    answer: Tensor
    """Cross-entropy per answer token."""
    depth: Tensor
    """Eq. 12: kept shares, each times the depth of its cut; mean over the batch."""
    distance: Tensor
    """Eq. 13, over N: how far the batch's mean keep rate is from what it should be."""
    keep: Tensor
    """The batch's mean keep rate over all layers."""


def governed(layers: Sequence[int], depth: int) -> list[int]:
    """How many of ``depth`` layers run at full count, then at that of each cut; their sum is ``depth``."""
    edges = [0, *layers, depth]
    return [end - start for start, end in itertools.pairwise(edges)]


def mean_keep(shares: Sequence[Tensor], layers: Sequence[int], depth: int) -> Tensor:
    """The keep rate over all layers, those before the first cut included, ``[B]``.

    ``shares``: ``[B]`` behind each cut. Averaged over layers, not over cuts: the paper's own
    88 of 576 tokens can be met in no other way.
    """
    first, *others = governed(layers, depth)
    spent = torch.full_like(shares[0], float(first))
    for share, count in zip(shares, others, strict=True):
        spent = spent + share * count
    return spent / depth


def training_loss(
    logits: Tensor,
    answers: Tensor,
    shares: Sequence[Tensor],
    layers: Sequence[int],
    depth: int,
    weights: Weights,
) -> Losses:
    """Eq. 14. ``logits``: ``[T, vocabulary]`` at the rows that predict ``answers`` ``[T]``, of all instances.

    The target is one of the mean over instances: what adapting is about.
    """
    answer = functional.cross_entropy(logits.float(), answers)
    kept = torch.stack([share * cut for share, cut in zip(shares, layers, strict=True)])
    deep = kept.sum(0).mean()
    keep = mean_keep(shares, layers, depth).mean()
    distance = (keep - weights.mean_keep).abs()
    total = answer + weights.atp * deep + weights.target * distance
    return Losses(total, answer, deep, distance, keep)
