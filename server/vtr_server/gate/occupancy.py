"""How many requests are inside, of all callers and of each.

A request is first an upload, while its body arrives, and in flight once the body is here. The two are
counted apart, so that bodies that never end take no place from those that run.
"""

from collections import Counter
from dataclasses import dataclass

from vtr_server.callers import count
from vtr_server.operations.limit_metrics import observe_in_flight, observe_uploads
from vtr_server.policy.settings import LimitSettings
from vtr_vllm.errors import CallerBusy, Overloaded

__all__ = ["Occupancy", "Place"]


@dataclass
class Place:
    """One request's place."""

    caller: str
    """Name of the caller's allowance."""
    uploads: bool
    """Whether the body is still on its way."""


class Occupancy:
    """The places of one API server process."""

    def __init__(self, limits: LimitSettings) -> None:
        self.uploads = 0
        self.in_flight = 0
        self.adopt(limits)
        self._uploads_of: Counter[str] = Counter()
        self._inside_of: Counter[str] = Counter()

    def adopt(self, limits: LimitSettings) -> None:
        """Hold to other limits from the next request on."""
        self._limits = limits

    def arrive(self, caller: str, most: int, *, has_body: bool) -> Place:
        """Let a request in; ``most`` requests of ``caller`` may be inside, 0 for any number.

        Raises CallerBusy and Overloaded.
        """
        if most and self._inside_of[caller] >= most:
            raise CallerBusy(
                f"{most} requests of yours are inside, the most that one caller may have; send this one"
                " when another has ended"
            )
        self._check_in_flight()  # before a body is read that would be in vain
        if has_body:
            self._check_uploads(caller)
            self._count_upload(caller, 1)
        else:
            self._count_in_flight(1)
        self._inside_of[caller] += 1
        return Place(caller, uploads=has_body)

    def begin(self, place: Place) -> None:
        """The body of a request is here; raises Overloaded."""
        if place.uploads:
            self._check_in_flight()
            self._count_upload(place.caller, -1)
            self._count_in_flight(1)
            place.uploads = False

    def leave(self, place: Place) -> None:
        """A request has ended."""
        if place.uploads:
            self._count_upload(place.caller, -1)
        else:
            self._count_in_flight(-1)
        count(self._inside_of, place.caller, -1)

    def _check_in_flight(self) -> None:
        if self.in_flight >= self._limits.in_flight:
            raise Overloaded(
                f"{self.in_flight} requests are inside, the most that this server takes; send it"
                " again later"
            )

    def _check_uploads(self, caller: str) -> None:
        own = self._uploads_of[caller]
        if own >= self._limits.uploads_per_caller:
            raise CallerBusy(
                f"{own} bodies of yours are arriving, the most that one caller may have; send this one"
                " when they are here"
            )
        if self.uploads >= self._limits.uploads:
            raise Overloaded(
                f"{self.uploads} bodies are arriving, the most that this server takes; send it again"
                " later"
            )

    def _count_upload(self, caller: str, change: int) -> None:
        self.uploads += change
        observe_uploads(change)
        count(self._uploads_of, caller, change)

    def _count_in_flight(self, change: int) -> None:
        self.in_flight += change
        observe_in_flight(change)
