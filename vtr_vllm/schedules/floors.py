"""How much of its own each image keeps, whatever the ranking says of the others."""

import math
from collections.abc import Sequence
from fractions import Fraction

from vtr_vllm.errors import ScheduleError, show


def check_floor(value: object) -> float:
    """The per-image floor as a float in [0, 1]; raises ScheduleError.

    0: one ranking over all images, in which an image can vanish. 1: every image keeps its
    proportional share. Booleans and numeric strings are refused, as are NaN and infinities.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ScheduleError(
            f"per_image_floor is {show(value)}; it must be a finite number in [0, 1]: 0 ranks all"
            " images together, 1 gives every image its proportional share"
        )
    return float(value) + 0.0  # + 0.0 turns -0.0 into 0.0


def image_floors(floor: float, kept: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Tokens that each image keeps for sure at a cut that keeps ``kept`` in all, ``[images]``.

    ``sizes`` has the vision tokens of each image before any cut. With k kept of n tokens of m
    images and a floor f > 0, image i keeps 1 + floor(f (k - m) (n_i - 1) / (n - m)) of its n_i
    tokens while k >= m. So the floors sum to at most k, none is above n_i, and none rises as k
    falls. All are 0 where f is 0 or k < m; an image without tokens does not count.
    """
    images = sum(size > 0 for size in sizes)
    if floor == 0 or kept < images:
        return (0,) * len(sizes)
    # As written in decimals, so that 0.3 of 10 is 3 and not the 2 that the nearest float gives.
    share = Fraction(str(floor)) * (kept - images)
    rest = max(sum(sizes) - images, 1)  # 1: where every image has one token, all 0 / 0 are 0
    return tuple(1 + math.floor(share * (size - 1) / rest) if size else 0 for size in sizes)
