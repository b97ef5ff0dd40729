"""What becomes of the vision tokens that a cut drops: nothing, or they are added to those that stay.

A merge is one class in one file of ``vtr_vllm.ranking.merges``; a rank rule names it behind a ``+``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MergeInputs:
    """U images or requests that keep K vision tokens of K + D, best-ranked first; a part of it.

    Of the dropped ones, or of the kept ones, only some may be looked at at a time: ``Merge.by_kept``.
    """

    likeness: torch.Tensor
    """[U, k, d] float32 cosine of the residual stream, kept against dropped."""
    dropped_scores: torch.Tensor
    """[U, d] float32 scores of the cut's rank rule."""
    first: int
    """Place of the first of the d among all D."""
    dropped: int
    """D."""


class Merge(ABC):
    """How kept tokens take up dropped ones: ``own * kept + weights @ dropped``, divided by the sum of
    these weights where ``is_mean``. Positions are the kept token's. Must not wait for the device."""

    name: ClassVar[str]
    """What schedules write: lower-case letters and ``_``, as the file."""
    is_mean: ClassVar[bool] = True
    by_kept: ClassVar[bool] = False
    """Whether each kept token chooses among all dropped ones; else each dropped one chooses."""
    weighs_scores: ClassVar[bool] = False
    """Whether scores are weights: only those of attention can be."""

    def __init_subclass__(cls) -> None:
        if cls.name in MERGES:
            raise TypeError(f"two merges are named {cls.name}: {MERGES[cls.name]}, {cls}")
        MERGES[cls.name] = cls()

    @abstractmethod
    def weights(self, inputs: MergeInputs) -> torch.Tensor:
        """[U, k, d] float32 of the dropped tokens."""

    def own(self, scores: torch.Tensor) -> torch.Tensor:
        """[U, K] float32 of the kept tokens themselves, by their ``scores``."""
        import torch

        return torch.ones_like(scores)


MERGES: dict[str, Merge] = {}
"""Name -> merge, of all."""


def merges() -> Mapping[str, Merge]:
    """All merges, their files read."""
    import vtr_vllm.ranking.merges  # noqa: F401

    return MERGES


def to_nearest(likeness: torch.Tensor) -> torch.Tensor:
    """[U, k, d] float32: 1 at the kept token that each dropped one is most like, the first of equals."""
    import torch

    nearest = likeness.argmax(dim=1, keepdim=True)
    return torch.zeros_like(likeness).scatter_(1, nearest, 1.0)
