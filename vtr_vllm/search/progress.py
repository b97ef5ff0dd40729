"""Live progress: what runs, how much is left, as lines for people and events for programs."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PRINT_EVERY = 2.0  # seconds


class Progress:
    """Counts requests against what was planned and says how long the rest will take.

    ``events``: file that gets one JSON line per event, appended; None for none. OSError passes
    through, here already where the file cannot be written. Lines for people go to stderr, at
    most one in two seconds between steps.
    """

    def __init__(self, events: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        if events is not None:
            events.touch()
        self._events, self._clock = events, clock
        self._planned: dict[str, int] = {}
        self._ran: dict[str, int] = {}
        self._seconds = 0.0
        self._printed = 0.0
        self._stage = "start"

    def plan(self, requests: Mapping[str, int]) -> None:
        """Say how many requests each stage is expected to run."""
        self._planned = dict(requests)

    def begin(self, stage: str) -> None:
        """A stage begins, and the one before ends: what it left unused of its plan is struck."""
        self._planned[self._stage] = self._ran.get(self._stage, 0)
        self._stage = stage
        self._emit("progress", message=f"{stage} begins", stage=stage)
        self._say(f"{stage} begins")

    @contextmanager
    def aside(self, stage: str) -> Iterator[None]:
        """What runs inside counts for ``stage``; the stage before goes on where it was."""
        before, self._stage = self._stage, stage
        try:
            yield
        finally:
            self._stage = before

    def found(self, message: str, schedules: Sequence[str]) -> None:
        """Schedules were written that were not there, or not as good."""
        self._emit("found", stage=self._stage, message=message, schedules=list(schedules))
        self._say(message)

    def ran(self, requests: int, seconds: float) -> None:
        """Requests were answered, or found in the journal; ``seconds`` is what they took."""
        self._ran[self._stage] = self._ran.get(self._stage, 0) + requests
        self._seconds += seconds
        now = self._clock()
        if now - self._printed < _PRINT_EVERY:
            return
        self._printed = now
        done, planned, left = sum(self._ran.values()), self.planned, self.seconds_left
        self._emit("progress", stage=self._stage, requests=done, planned=planned, seconds_left=left)
        ahead = "" if left is None else f", about {duration(left)} left"
        self._say(f"{self._stage}: {done} of about {planned} requests{ahead}")

    def step(self, message: str, **facts: Any) -> None:
        """A step of a search came to a result."""
        self._emit("step", stage=self._stage, message=message, **facts)
        self._say(f"{self._stage}: {message}")

    def end(self, kind: str, message: str) -> None:
        """The search is ``done`` or has ``failed``; why it failed the command line says by itself."""
        self._emit(kind, message=message)
        if kind == "done":
            self._say(message)

    @property
    def planned(self) -> int:
        """Requests in all, about: what was run and what is left of the plan."""
        stages = self._planned.keys() | self._ran.keys()
        return sum(max(self._planned.get(s, 0), self._ran.get(s, 0)) for s in stages)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before anything ran."""
        done = sum(self._ran.values())
        return (self.planned - done) * self._seconds / done if done else None

    def _emit(self, kind: str, **facts: Any) -> None:
        if self._events is None:
            return
        line = json.dumps({"time": self._clock(), "kind": kind, **facts})
        with self._events.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _say(self, text: str) -> None:
        print(f"search: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Such as ``2 h 05 min``, ``12 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
