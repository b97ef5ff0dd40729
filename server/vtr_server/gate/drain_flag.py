"""Whether a server drains, known to all of its API server processes."""

import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from vtr_server.operations.metric_files import written_since

__all__ = ["DrainFlag", "shared_drain_flag"]


class DrainFlag:
    """Set, and never unset. With a file, whoever sets it sets it for all processes that look there."""

    def __init__(self, file: Path | None = None, since: float = 0.0) -> None:
        """A ``file`` that was written before ``since``, in seconds since 1970, means nothing."""
        self.is_shared = file is not None
        self._file = file
        self._since = since
        self._set = False

    def set(self) -> None:
        """From now on."""
        self._set = True
        if self._file is not None:
            self._file.touch()

    def __bool__(self) -> bool:
        if not self._set and self._file is not None:
            try:
                self._set = written_since(self._file, self._since)
            except FileNotFoundError:
                return False
        return self._set


def shared_drain_flag(processes: int, environ: Mapping[str, str]) -> DrainFlag:
    """The flag of this process, one of ``processes`` API servers that vLLM started on this host.

    Where there are several, the folder of their metrics is there, made by vLLM for this start or
    named by the user; their parent tells them from other servers that use it.
    """
    folder = environ.get("PROMETHEUS_MULTIPROC_DIR")
    if processes < 2 or not folder:
        return DrainFlag()
    parent = psutil.Process(os.getppid())
    return DrainFlag(Path(folder) / f"vtr-draining-{parent.pid}", parent.create_time())
