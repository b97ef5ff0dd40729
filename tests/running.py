"""What runs beside a test: ports, processes that listen, and the wait for what they will do."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

WAIT_SECONDS = 120  # a loaded machine of two cores
T = TypeVar("T")


def free_port() -> int:
    """A port of this machine that nobody listens on now.

    For what does not say which one it took: vLLM, of port 0, says 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_until(
    fact: Callable[[], T],
    seconds: float = WAIT_SECONDS,
    told: Callable[[], object] | None = None,
    every: float = 0.05,
) -> T:
    """The first true value, looked for ``every`` so many seconds.

    Fails after a time that says that it will not come, with what is ``told`` then.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := fact():
            return value
        time.sleep(every)
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

    # Rarely: a client costs some of the time in which the server starts.
    wait_until(lambda: process.poll() is not None or answers(url), seconds, told, every=0.5)
    assert process.poll() is None, told()
