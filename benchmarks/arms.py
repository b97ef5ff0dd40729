"""The two arms: worker processes that live through a whole run and never work at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.shapes import Shape

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = {"stock": "", "vtr": "vtr"}  # which general plugins vLLM loads: none, or ours alone
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Keep freed memory. By default glibc hands the large tensors of a prefill back to the kernel after
    # each operation and gets them again page by page, or does not, as a process happens to have
    # allocated before: of two equal engines one can be slower for it.
    "GLIBC_TUNABLES": os.environ.get(
        "GLIBC_TUNABLES", "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368"
    ),
}
SETTLE_S = 0.3
"""Pause before a measurement: OpenMP threads of the other arm spin briefly after work."""


def threading(threads: int | None) -> dict[str, str]:
    """Return the environment of a CPU engine with ``threads`` threads, tied to no core.

    None leaves vLLM's own choice: every core, one thread tied to each.
    """
    if threads is None:
        return {}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


class WorkerDied(RuntimeError):
    """A worker process ended or answered with something else than JSON."""


class Arm:
    """A worker process; ``measure`` blocks until its answer is there."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        eager: bool,
        log: Path,
        threads: int | None = None,
        module: str = "benchmarks.worker",
    ) -> None:
        self.name, self.log = name, log
        self._stderr: IO[bytes] = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, **threading(threads), "VLLM_PLUGINS": PLUGINS[name]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        setup = {"arm": name, "shape": shape.name, "engine_args": shape.engine_args(eager)}
        self.info = self._ask(setup)

    def measure(self, spec: Mapping[str, object]) -> dict[str, Any]:
        """Run one measurement and return its numbers."""
        time.sleep(SETTLE_S)
        return self._ask(spec)

    def _ask(self, message: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            self.close()
            tail = self.log.read_text(errors="replace")[-3000:]
            raise WorkerDied(f"the {self.name} worker died; its log ends with:\n{tail}") from error

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
