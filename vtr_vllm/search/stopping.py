"""When a candidate is given up: on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["LEAST_PAIRS", "likely_highest"]

LEAST_PAIRS = 50
"""Items from which on a mean difference says something."""
_SURE = 3.1
"""Standard deviations: one candidate in a thousand is given up that would just have passed."""


def likely_highest(values: Sequence[float], full: Sequence[float], spread: float) -> float:
    """The mean that a candidate hardly exceeds on all items, given its ``values`` on the first of them.

    ``full``: the unreduced model's values on all. Items that a model cannot answer lower both, so it is
    the difference that tells: a model that is right 60% of the time would else be asked to the end.
    The bound is that of a mean of differences, drawn without replacement; ``spread``, the width of the
    values' range, counts as one difference more, so that no difference at all proves nothing.
    """
    seen, asked = len(values), len(full)
    differences = [value - other for value, other in zip(values, full, strict=False)]
    mean = math.fsum(differences) / seen
    squares = math.fsum((each - mean) ** 2 for each in differences)
    variance = (squares + spread * spread) / seen
    error = math.sqrt(variance * (asked - seen) / (seen * asked))
    return math.fsum(full) / asked + mean + _SURE * error
