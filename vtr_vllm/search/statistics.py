"""How sure a mean score is: confidence intervals, and how many items a narrower one needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtr_vllm.errors import CalibrationError

LEVEL = 0.95
HALF_WIDTHS = (0.02, 0.01, 0.005)
"""What a sample-size report looks ahead to."""

_RESAMPLES = 2000
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[int] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """Confidence interval ``(low, high)`` of the mean: percentile bootstrap, the same every time.

    ``groups``: the group of each value, such as that of the questions about one image; None: each is
    its own. What is drawn are whole groups (the cluster bootstrap), since values of one group are
    alike. ``bounds`` is the least and the greatest that one value could have been. Where all values are
    equal, resampling shows no spread at all; the interval is then what the mean would be if a
    share z^2 / (n + z^2) of all had another value, up to either bound, for n groups. That is the upper
    Wilson bound of something seen in none of n; with every score 1 or every score 0 the
    result is the Wilson interval. Raises CalibrationError without values, or for a value outside
    the bounds.
    """
    scores = _check(values, bounds)
    sums, sizes = _by_group(scores, groups)
    if np.ptp(scores) == 0:
        unseen = _Z * _Z / (len(sums) + _Z * _Z)
        value = float(scores[0])
        return value + (bounds[0] - value) * unseen, value + (bounds[1] - value) * unseen
    # How often each distinct group is drawn: the same distribution as n indices, in less memory.
    distinct, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(sums), counts / len(sums), size=_RESAMPLES)
    means = (drawn @ distinct[0]) / (drawn @ distinct[1])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(
    a: Sequence[float], b: Sequence[float], groups: Sequence[int] | None = None
) -> tuple[float, float, float]:
    """Mean of ``a - b`` over the same items, and its bootstrap interval: (difference, low, high).

    Scores in [0, 1]. Raises CalibrationError as ``bootstrap_interval``, or for unequal lengths.
    """
    if len(a) != len(b):
        raise CalibrationError(f"{len(a)} scores cannot be paired with {len(b)}: score the same")
    differences = _check(a, (0.0, 1.0)) - _check(b, (0.0, 1.0))
    low, high = bootstrap_interval(differences.tolist(), groups, bounds=(-1.0, 1.0))
    return float(differences.mean()), low, high


def beside_full(
    values: Sequence[float], full: Sequence[float], groups: Sequence[int] | None = None
) -> dict[str, Any]:
    """Mean score and its difference to no reduction on the same items, with their intervals, as JSON.

    Raises CalibrationError as ``paired_difference``.
    """
    low, high = bootstrap_interval(values, groups)
    difference, below, above = paired_difference(values, full, groups)
    return {
        "score": math.fsum(values) / len(values),
        "low": low,
        "high": high,
        "minus_full": {"difference": difference, "low": below, "high": above},
    }


def items_needed(
    values: Sequence[float], half_width: float, groups: Sequence[int] | None = None
) -> int:
    """Items for an interval of ``mean ± half_width``, were the rest like ``values``, groups included.

    Scores in [0, 1]; normal approximation, n = (z s / half_width)^2, with s^2 the variance of n means
    of n such items. Where all values are equal, the n at which ``bootstrap_interval`` is that narrow.
    Raises CalibrationError without values,
    or for a half-width outside (0, 1).
    """
    scores = _check(values, (0.0, 1.0))
    if not 0 < half_width < 1:
        raise CalibrationError(f"half_width is {half_width}; it must be in (0, 1)")
    sums, sizes = _by_group(scores, groups)
    if np.ptp(scores) == 0:
        items = _Z * _Z * (1 / (2 * half_width) - 1) * len(scores) / len(sums)
    else:
        errors = sums - scores.mean() * sizes
        variance = errors @ errors * len(sums) / max(1, len(sums) - 1) / len(scores)
        items = variance * (_Z / half_width) ** 2
    return max(1, math.ceil(items))


@dataclass(frozen=True)
class SampleSize:
    """How well a number of items determines their mean score; all as shares of 1."""

    items: int
    mean: float
    low: float
    high: float
    needed: Mapping[float, int]
    """Half-width to the items that it would take."""

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        needed = ", ".join(
            f"±{100 * half_width:g} points {items} items"
            for half_width, items in self.needed.items()
        )
        return (
            f"{self.items} items: {100 * self.mean:.1f}, {100 * LEVEL:g} % interval "
            f"{100 * self.low:.1f} to {100 * self.high:.1f} "
            f"(±{100 * self.half_width:.1f} points); it takes for {needed}"
        )


def sample_size_report(values: Sequence[float], groups: Sequence[int] | None = None) -> SampleSize:
    """Say how sure the mean of ``values`` (scores in [0, 1]) is, and what more items would give.

    Raises CalibrationError as ``bootstrap_interval``.
    """
    low, high = bootstrap_interval(values, groups)
    needed = {width: items_needed(values, width, groups) for width in HALF_WIDTHS}
    return SampleSize(len(values), float(np.mean(values)), low, high, needed)


def _check(values: Sequence[float], bounds: tuple[float, float]) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.size == 0:
        raise CalibrationError("there are no scores; evaluate one item or more")
    if not np.all((scores >= bounds[0]) & (scores <= bounds[1])):  # NaN is in no range
        raise CalibrationError(f"scores must lie in {list(bounds)}; got {values!r:.200}")
    return scores


def _by_group(
    scores: NDArray[np.float64], groups: Sequence[int] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each group; each value's own without groups."""
    if groups is None:
        return scores, np.ones(len(scores))
    if len(groups) != len(scores):
        raise CalibrationError(
            f"{len(scores)} scores cannot be grouped by {len(groups)}: give each its group"
        )
    _, numbers = np.unique(groups, return_inverse=True)
    return (
        np.bincount(numbers, scores).astype(np.float64),
        np.bincount(numbers).astype(np.float64),
    )
