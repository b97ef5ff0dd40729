"""Real servers of the demo model, each a process that a test may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running import free_port, wait_until_up

START_SECONDS = 540  # two at a time, on a loaded machine of two cores


@dataclass(frozen=True)
class DemoServer:
    """A process group with a server in it."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def served(self) -> int:
        """Requests answered or begun so far, by its own metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(
            int(float(line.split()[-1])) for line in lines if line.startswith("vtr_requests_total{")
        )

    def kill(self) -> None:
        """SIGKILL to the server and its engine."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def demo_servers(count: int, folder: Path, settings: str = "") -> Iterator[list[DemoServer]]:
    """Started together, as ``vtr serve demo`` with a settings file; killed at the end."""
    file = folder / "settings.toml"
    file.write_text(settings)
    servers = [_start(folder / f"server-{number}.log", file) for number in range(count)]
    try:
        end = time.monotonic() + START_SECONDS
        for server in servers:
            left = end - time.monotonic()
            wait_until_up(server.process, f"{server.url}/health", server.log, left)
        yield servers
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.kill()


def _start(log: Path, settings: Path) -> DemoServer:
    port = free_port()  # two start at once, and each is known by its address before it serves
    command = [sys.executable, "-m", "vtr_vllm.cli", "serve", "demo", "--port", str(port)]
    command += ["--settings", str(settings)]
    # The engine need not import all again; the server of all tests starts it as vLLM does.
    environment = os.environ | {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    return DemoServer(f"http://127.0.0.1:{port}", process, log)
