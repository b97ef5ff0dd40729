"""A real server for a benchmark: ``vtr serve`` on a free port, ended with the block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from PIL import Image

from benchmarks.arms import ROOT
from vtr_vllm.image_files import encode_png
from vtr_vllm.search.calibration import data_uri

START_SECONDS = 600
STOP_SECONDS = 90
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


class Served:
    """``vtr serve MODEL`` with further flags; healthy inside the block, whose failure leaves the log.

    ``settings`` is the text of a settings file. Raises RuntimeError, with the end of the log, for
    a server that does not get healthy.
    """

    def __init__(
        self,
        model: str | Path,
        flags: Sequence[str] = (),
        *,
        settings: str = "",
        environment: Mapping[str, str] = QUIET,
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="vtr-serving-"))
        file = folder / "settings.toml"
        file.write_text(settings)
        command = ["-m", "vtr_vllm.cli", "serve", str(model), *flags, "--settings", str(file)]
        self._start(command, {**os.environ, **environment}, folder / "server.log")

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], log_file: Path
    ) -> None:
        """Run Python with ``command`` and a free port, in exactly this environment.

        The folder of ``log_file`` is the server's own and goes with it.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        self.log = log_file
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--host", "127.0.0.1", "--port", port],
                cwd=ROOT,
                env=dict(environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The API server's process; the engine's are its children."""
        return self._process.pid

    def __enter__(self) -> Self:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self._healthy():
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        self._end()
        raise RuntimeError(f"the server did not start; its log ends with:\n{self.tail()}")

    def _healthy(self) -> bool:
        found = httpx.get(f"{self.url}/health", timeout=10, trust_env=False)
        return found.status_code == httpx.codes.OK

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-4000:]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        if kind is None:
            shutil.rmtree(self.log.parent)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def content(image: Image.Image, question: str) -> list[dict[str, Any]]:
    """Return the content of a user's message: an image, then what is asked about it."""
    return [
        {"type": "image_url", "image_url": {"url": data_uri(encode_png(image))}},
        {"type": "text", "text": question},
    ]
