"""The folder of PROMETHEUS_MULTIPROC_DIR, where each process of a server keeps its numbers in files.

Whoever is scraped adds up all files that are there, those of processes that are gone too: a server
that was killed would have its requests counted, and be ready, for ever.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import psutil

__all__ = ["begin_metric_files", "forget_the_dead", "written_since"]

logger = logging.getLogger("vllm.vtr")

_FILE = re.compile(r"[a-z_]+_(\d+)\.db")
"""How prometheus_client names them: kind, mode, process."""
_SLACK_SECONDS = 1.0
"""Clocks of files and of processes are not the same."""


def begin_metric_files(environ: Mapping[str, str], pid: int) -> None:
    """Have the folder, where the environment names one, without numbers of an earlier start.

    Must be called before anything imports prometheus_client; ``pid`` is this process.
    """
    if folder := environ.get("PROMETHEUS_MULTIPROC_DIR"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        forget_the_dead(Path(folder), pid)


def forget_the_dead(folder: Path, pid: int) -> list[str]:
    """Delete the files of processes that are gone, and return their names.

    So of several servers or API server processes that use the folder each keeps its own. A number
    of a process may be in use again: then the file is older than the process. ``pid`` has no file
    yet: in a container it is that of the process that was killed.
    """
    deleted = []
    for file in sorted(folder.glob("*.db")):
        named = _FILE.fullmatch(file.name)
        if named and (int(named[1]) == pid or not _is_of_a_living(file, int(named[1]))):
            file.unlink(missing_ok=True)
            deleted.append(file.name)
    if deleted:
        logger.info("VTR deleted %d files of earlier starts in %s", len(deleted), folder)
    return deleted


def _is_of_a_living(file: Path, pid: int) -> bool:
    try:
        return written_since(file, psutil.Process(pid).create_time())
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def written_since(file: Path, began: float) -> bool:
    """Whether a file was written since a process began, in seconds since 1970; FileNotFoundError passes."""
    return file.stat().st_mtime >= began - _SLACK_SECONDS
