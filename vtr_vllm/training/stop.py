"""How a training is asked to end."""

from __future__ import annotations

import signal
from typing import Self

__all__ = ["STOPPED", "Stop"]

STOPPED = 128
"""Exit codes of a stopped process: this and the signal's number."""


class Stop:
    """Inside, the first SIGTERM or SIGINT asks for an end behind the step; the next one ends at once."""

    def __enter__(self) -> Self:
        self.signal: int | None = None
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self) -> bool:
        return self.signal is not None

    def _ask(self, number: int, _: object) -> None:
        self.signal = number
        self._end()

    def _end(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
