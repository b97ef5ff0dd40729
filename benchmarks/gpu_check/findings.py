"""What a stage says: one JSON line for each thing it found, written the moment it is known."""

from __future__ import annotations

import json
import os
import time
from typing import IO, Any

STARTED = {"stock": "started stock", "vtr": "started vtr"}
"""What is said of an arm's engine that came up; no check of an answer."""


class Report:
    """The lines of one stage's process; whatever else prints goes to stderr."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._lines: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._begun = time.monotonic()

    def say(self, name: str, ok: bool | None, text: str, **numbers: Any) -> None:
        """Write one finding.

        ``ok`` is None for a measurement, which can be neither right nor wrong.
        """
        line = {
            "stage": self.stage,
            "name": name,
            "ok": ok,
            "text": text,
            "numbers": numbers,
            "at_s": round(time.monotonic() - self._begun, 1),
        }
        print(json.dumps(line), file=self._lines, flush=True)


def one_line(finding: dict[str, Any]) -> str:
    """Return a finding as text."""
    mark = {True: "ok  ", False: "FAIL", None: "    "}[finding["ok"]]
    return f"{mark} {finding['stage']}: {finding['name']}: {finding['text']}"


def tail(text: str, lines: int = 25) -> str:
    """Return the end of a log."""
    return "\n".join(text.splitlines()[-lines:])
