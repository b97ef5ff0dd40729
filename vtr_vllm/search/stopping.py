"""When a candidate is given up: on plain numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

__all__ = ["LEAST_GROUPS", "likely_highest"]

LEAST_GROUPS = 50
"""Items that share no image with each other, from which on a mean difference says something."""
_SURE = 3.7
"""Standard deviations: looked at after each block, one candidate in a thousand is given up that would just
have passed."""


def likely_highest(
    values: Sequence[float], full: Sequence[float], groups: Sequence[int], spread: float
) -> float:
    """The mean that a candidate hardly exceeds on all items, given its ``values`` on the first of them.

    ``full``: the unreduced model's values on all, ``groups`` the group of each: items of one share images,
    so that only their sum says how far a mean may be off. Items that a model cannot answer lower both, so it is
    the difference that tells: a model that is right 60% of the time would else be asked to the end.
    The bound is that of a mean of differences, drawn without replacement; ``spread``, the width of the
    values' range, counts as the difference of one group more, so that no difference at all proves nothing.
    """
    seen, asked = len(values), len(full)
    differences = [value - other for value, other in zip(values, full, strict=False)]
    mean = math.fsum(differences) / seen
    sums: dict[int, float] = defaultdict(float)
    for group, each in zip(groups, differences, strict=False):
        sums[group] += each - mean
    more = spread * seen / len(sums)  # of a group of mean size
    squares = math.fsum([*(each**2 for each in sums.values()), more**2])
    error = math.sqrt(squares / seen * (asked - seen) / (seen * asked))
    return math.fsum(full) / asked + mean + _SURE * error
