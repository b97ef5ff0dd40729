"""What runs beside a test: ports, processes that listen, and the wait for what they will do."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

WAIT_SECONDS = 120  # a loaded machine of two cores
LISTENS = re.compile(r"Uvicorn running on (http://[\w.]+:\d+) ")
"""What uvicorn says once it serves."""

T = TypeVar("T")


def free_port() -> int:
    """A port of this machine that nobody listens on now; for what cannot say which one it took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_until(
    fact: Callable[[], T], seconds: float = WAIT_SECONDS, told: Callable[[], object] | None = None
) -> T:
    """The first true value; fails after a time that says that it will not come, with what is ``told``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := fact():
            return value
        time.sleep(0.05)
    pytest.fail(f"what the test waited for did not come: {told() if told else ''}")


def answers(url: str) -> bool:
    """Whether GET of ``url`` is answered by 200 now."""
    try:
        return httpx.get(url, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    """Return once GET of ``url`` is answered by 200; fails with the end of the log otherwise.

    Not later than the process ends.
    """

    def told() -> str:
        return f"exit {process.poll()}, {url}:\n{log.read_text(errors='replace')[-6000:]}"

    wait_until(lambda: process.poll() is not None or answers(url), seconds, told)
    assert process.poll() is None, told()


def wait_until_listening(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    """The address of a server of uvicorn's that was started with port 0, from its log, once it serves."""

    def told() -> str:
        return f"exit {process.poll()}:\n{log.read_text(errors='replace')[-6000:]}"

    def look() -> str:
        found = LISTENS.search(log.read_text(errors="replace"))
        return found[1] if found else "" if process.poll() is None else "nowhere"

    url = wait_until(look, seconds, told)
    assert url != "nowhere", told()
    return url
