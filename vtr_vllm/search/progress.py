"""Live progress: what runs, how much is left, as lines for people and events for programs."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PRINT_EVERY = 2.0  # seconds


class Progress:
    """Counts requests against what was planned and says how long the rest will take.

    ``events``: file that gets one JSON line per event, appended; None for none. Lines for people
    go to stderr, at most one in two seconds between steps.
    """

    def __init__(self, events: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._events, self._clock = events, clock
        self._planned = 0
        self._requests = 0
        self._running = 0.0
        self._printed = 0.0
        self._stage = "start"

    def plan(self, requests: int) -> None:
        """Say how many requests the whole search is expected to run."""
        self._planned = requests

    def begin(self, stage: str) -> None:
        """A stage of the search begins."""
        self._stage = stage
        self._emit("progress", message=f"{stage} begins", stage=stage)
        self._say(f"{stage} begins")

    def ran(self, requests: int, seconds: float) -> None:
        """A batch of requests was answered, or found in the journal."""
        self._requests += requests
        self._running += seconds
        now = self._clock()
        if now - self._printed < _PRINT_EVERY:
            return
        self._printed = now
        left = self.seconds_left
        facts = {"requests": self._requests, "planned": self._planned, "seconds_left": left}
        self._emit("progress", stage=self._stage, **facts)
        ahead = "" if left is None else f", about {duration(left)} left"
        self._say(f"{self._stage}: {self._requests} of about {self._planned} requests{ahead}")

    def step(self, message: str, **facts: Any) -> None:
        """A step of a search came to a result."""
        self._emit("step", stage=self._stage, message=message, **facts)
        self._say(f"{self._stage}: {message}")

    def end(self, kind: str, message: str) -> None:
        """The search is ``done`` or has ``failed``."""
        self._emit(kind, message=message)
        self._say(message)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before anything ran."""
        if not self._requests or not self._running:
            return None
        return max(0, self._planned - self._requests) * self._running / self._requests

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
