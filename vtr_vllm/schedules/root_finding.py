"""The root of a rising function."""

from collections.abc import Callable


def solve_increasing(function: Callable[[float], float], low: float, high: float) -> float:
    """The least zero of a non-decreasing function in [low, high], to the last bit of a float."""
    if function(low) >= 0:
        return low
    while low < (middle := (low + high) / 2) < high:
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return high
