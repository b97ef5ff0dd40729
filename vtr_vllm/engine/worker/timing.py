"""How long ranking and gathering take, measured without waiting for the device."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Part = Literal["rank", "gather"]


class Timing:
    """Seconds since start, of one worker, in steps that drop tokens.

    On the CPU the host's clock. On a GPU events in its stream, which are read once they have
    passed: the time between them on the device, its waiting for the host included.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seconds: dict[Part, float] = {"rank": 0.0, "gather": 0.0}
        self._on_gpu = False
        self._passing: deque[tuple[Part, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._spare: list[torch.cuda.Event] = []

    def begin_step(self, device: torch.device) -> None:
        """Count a step that drops tokens."""
        self._steps += 1
        self._on_gpu = device.type == "cuda"
        self._read_passed()

    @contextmanager
    def spent(self, part: Part) -> Iterator[None]:
        """Add what runs inside to ``part``."""
        if self._on_gpu:
            begin = self._event()
            yield
            self._passing.append((part, begin, self._event()))
        else:
            start = time.perf_counter()
            yield
            self._seconds[part] += time.perf_counter() - start

    def counters(self) -> dict[str, float]:
        """``rank_seconds``, ``gather_seconds``, ``reduced_steps``; never falling."""
        self._read_passed()
        return {
            "rank_seconds": self._seconds["rank"],
            "gather_seconds": self._seconds["gather"],
            "reduced_steps": self._steps,
        }

    def _event(self) -> torch.cuda.Event:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read_passed(self) -> None:
        while self._passing and self._passing[0][2].query():
            part, begin, end = self._passing.popleft()
            self._seconds[part] += begin.elapsed_time(end) / 1000
            self._spare += [begin, end]
