"""Whether two runs say the same, up to what the number format leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    """How far the answers of two engines agree."""

    equal: int
    total: int
    worst: float
    """Greatest lead, in nats, with which the first engine chose a token that the second did not; only
    the first difference of an answer counts, since what follows has other words before it."""

    def within(self, tolerance: float) -> bool:
        """Whether every difference was a near tie."""
        return self.worst <= tolerance

    def text(self) -> str:
        """Say it."""
        most = "" if self.equal == self.total else f", the clearest by {self.worst:.4f} nats"
        return f"{self.equal} of {self.total} answers equal{most}"


def agreement(first: Sequence[Answer], second: Sequence[Answer]) -> Agreement:
    """Return how the answers of ``second`` agree with those of ``first``."""
    equal, worst = 0, 0.0
    for a, b in zip(first, second, strict=True):
        differs = next(
            (i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"], strict=True)) if x != y),
            None,
        )
        if differs is None:
            equal += 1
        else:
            worst = max(worst, a["margins"][differs])
    return Agreement(equal, len(first), worst)


def lead_lost(reference: Any, tokens: Sequence[int]) -> float:
    """Return by how much the reference's best token leads that which was chosen, at worst.

    ``reference`` [steps, vocab] log-probabilities, teacher-forced on ``tokens``; nats.
    """
    chosen = reference[range(len(tokens)), list(tokens)]
    return float((reference.max(-1).values - chosen).max())
