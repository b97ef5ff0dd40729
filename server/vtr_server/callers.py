"""What each caller has of something that all share."""

from collections import Counter

__all__ = ["count"]


def count(counter: Counter[str], caller: str, change: int) -> None:
    """Change what a caller has; names that have nothing are forgotten: there may be any number of addresses."""
    counter[caller] += change
    if counter[caller] == 0:
        del counter[caller]
