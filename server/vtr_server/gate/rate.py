"""Allowances per minute, as token buckets."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Buckets"]

MOST_BUCKETS = 4096


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class Buckets:
    """A bucket per name, which holds one minute's worth and fills evenly.

    At most MOST_BUCKETS names: beyond, the one unused for longest is forgotten, which is a gift
    only to a caller with thousands of names (addresses), whom a limit per name does not bind.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` in seconds, never going back."""
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str, per_minute: int) -> float:
        """Take one and return 0.0, or take none and return the seconds until there is one."""
        bucket = self._filled(name, per_minute)
        if bucket.level >= 1.0:
            bucket.level -= 1.0
            return 0.0
        return (1.0 - bucket.level) * 60.0 / per_minute

    def wait(self, name: str, per_minute: int) -> float:
        """Seconds until ``name`` has no debt; 0.0 if it has none."""
        level = self._filled(name, per_minute).level
        return -level * 60.0 / per_minute if level < 0.0 else 0.0

    def charge(self, name: str, per_minute: int, amount: float) -> None:
        """Take ``amount``, into debt if need be: what something costs is known once it is begun."""
        self._filled(name, per_minute).level -= amount

    def __len__(self) -> int:
        return len(self._buckets)

    def _filled(self, name: str, per_minute: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(float(per_minute), now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
            gained = (now - bucket.at) * per_minute / 60.0
            bucket.level = min(float(per_minute), bucket.level + gained)
            bucket.at = now
        return bucket
