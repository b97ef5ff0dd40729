"""The jobs of a service: one folder each, which is all that there is to know of it.

ROOT/ID/job.json       the job, replaced at once or not at all
        lock           held by whatever process works in the folder
        events.jsonl   what the search tells while it runs
        stderr.log     and stdout.log, of all attempts
        out/           journal, schedules and report of the search
"""

import fcntl
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vtr_server.jobs.protocol import BrokenJob, Job, JobSpec, State
from vtr_server.operations.metrics import observe_job_end, observe_jobs
from vtr_vllm.errors import ConfigurationError, UnknownJob, show
from vtr_vllm.faults import first_fault
from vtr_vllm.whole_file import whole_file

__all__ = ["JobStore", "try_lock"]

logger = logging.getLogger("vllm.vtr")

_ID = re.compile("[0-9a-f]{16}")


class JobStore:
    """All jobs under ``root``, which one service at a time may hold.

    A job file that cannot be read is logged and listed in ``broken``; its folder is left alone.
    Raises ConfigurationError if another service holds the folder.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root.resolve()  # the search may run in another working directory
        lock = try_lock(self._root / "lock")
        if lock is None:
            raise ConfigurationError(
                f"job folder {root} is in use by another job service; stop that, or name another"
            )
        self._lock = lock
        self._jobs: dict[str, Job] = {}
        self.broken: list[BrokenJob] = []
        for path in sorted(self._root.glob("[0-9a-f]*/job.json")):
            found = _load(path)
            if isinstance(found, BrokenJob):
                logger.error("VTR: job %s is broken: %s", found.id, found.reason)
                self.broken.append(found)
            else:
                self._jobs[found.id] = found
        self._tell()

    def close(self) -> None:
        """Let another service have the folder."""
        os.close(self._lock)

    def folder(self, job_id: str) -> Path:
        """Where a job lives, as an absolute path; raises UnknownJob."""
        return self._root / self.get(job_id).id

    def get(self, job_id: str) -> Job:
        """A job as it stands; raises UnknownJob."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise UnknownJob(
                f"job {show(job_id)} is unknown; GET /v1/jobs lists what there is"
            ) from None

    def create(self, spec: JobSpec) -> Job:
        """Add a queued job; OSError passes through."""
        # ids sort by creation, also of two jobs in one tick and after the clock was set back
        taken = [*self._jobs, *(broken.id for broken in self.broken)]
        newest = max((int(job_id, 16) for job_id in taken if _ID.fullmatch(job_id)), default=0)
        job_id = f"{max(time.time_ns(), newest + 1):016x}"
        job = Job(id=job_id, created=time.time(), spec=spec)
        folder = self._root / job_id
        draft = self._root / f".{job_id}.tmp"
        draft.mkdir()
        _write(draft / "job.json", job)
        draft.replace(folder)  # a folder without job.json is never seen
        self._jobs[job_id] = job
        self._tell()
        return job

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change fields of a job, on disk first; OSError passes through."""
        before = self.get(job_id)
        job = before.model_copy(update=changes)
        _write(self.folder(job_id) / "job.json", job)
        self._jobs[job_id] = job
        self._tell()
        if job.state != before.state and job.state not in ("queued", "running"):
            observe_job_end(job.state)
        return job

    def _tell(self) -> None:
        states = [job.state for job in self._jobs.values()]
        observe_jobs(states.count("queued"), states.count("running"))

    def newest(self, state: State | None = None, after: str | None = None) -> list[Job]:
        """Jobs, newest first: of one state, and older than the job ``after``."""
        return [
            self._jobs[job_id]
            for job_id in sorted(self._jobs, reverse=True)
            if (after is None or job_id < after) and state in (None, self._jobs[job_id].state)
        ]


def try_lock(path: Path) -> int | None:
    """An open file that holds the lock ``path``, or None if another process has it.

    The lock is free once every process that the file was passed to has closed it or ended.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _load(path: Path) -> Job | BrokenJob:
    name = path.parent.name
    try:
        job = Job.model_validate_json(path.read_bytes())
    except ValidationError as err:
        reason = f"job.json is malformed ({first_fault(err)})"
    except OSError as err:
        reason = f"job.json cannot be read ({err.strerror})"
    else:
        if job.id == name:
            return job
        reason = f"job.json is of job {job.id}"
    return BrokenJob(
        id=name, reason=f"{reason}; repair it and start the service again, or move its folder away"
    )


def _write(path: Path, job: Job) -> None:
    with whole_file(path) as file:
        file.write(job.model_dump_json(indent=2) + "\n")
