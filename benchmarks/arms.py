"""The two arms: worker processes that live through a whole run and never work at the same time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from benchmarks.shapes import Shape

T = TypeVar("T")
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


def classes(arm: str) -> dict[str, str]:
    """Return the engine arguments that make an engine of ``arm``."""
    if arm == "stock":
        return {}
    from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS

    return {"worker_cls": WORKER_CLS, "scheduler_cls": SCHEDULER_CLS}


def threading(threads: int | None) -> dict[str, str]:
    """Return the environment of a CPU engine with ``threads`` threads, tied to no core.

    None leaves vLLM's own choice: every core, one thread tied to each.
    """
    if threads is None:
        return {}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def in_turn(order: Sequence[T], round_number: int, place: int) -> list[T]:
    """Return the two arms of a pair in the order of this measurement.

    It flips from pair to pair of a round, and for each ``place`` of a round from round to round: no
    cell of a table has the same arm first each time.
    """
    return list(order if (round_number + place) % 2 == 0 else order[::-1])


@contextmanager
def log_folder(name: str) -> Iterator[Path]:
    """A folder for logs, which stays to be read where the block fails."""
    folder = Path(tempfile.mkdtemp(prefix=f"vtr-{name}-"))
    yield folder
    shutil.rmtree(folder)


class WorkerDied(RuntimeError):
    """A worker process ended or answered with something else than JSON."""


class Arm:
    """A worker process, which starts by itself; ``info`` and ``measure`` block until it answers."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        eager: bool,
        log: Path,
        threads: int | None = None,
        module: str = "benchmarks.worker",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """``settings`` are engine arguments beside and above those of ``shape``."""
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
        arguments = shape.engine_args(eager) | dict(settings or {})
        self._send({"arm": name, "shape": shape.name, "engine_args": arguments})

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the worker says of itself once its engine is up."""
        return self._receive()

    def measure(self, spec: Mapping[str, object]) -> dict[str, Any]:
        """Run one measurement and return its numbers."""
        _ = self.info
        time.sleep(SETTLE_S)
        self._send(spec)
        return self._receive()

    def _send(self, message: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            return json.loads(self._process.stdout.readline())
        except json.JSONDecodeError as error:
            raise self._died() from error

    def _died(self) -> WorkerDied:
        self.close()
        tail = self.log.read_text(errors="replace")[-3000:]
        return WorkerDied(f"the {self.name} worker died; its log ends with:\n{tail}")

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
