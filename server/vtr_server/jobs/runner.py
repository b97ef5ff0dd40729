"""The processes: a queue of jobs, and as many searches at once as there are slots."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vtr_server.jobs import guard
from vtr_server.jobs.protocol import Job
from vtr_server.jobs.sources import Sources
from vtr_server.jobs.store import JobStore, try_lock
from vtr_server.operations.metrics import observe_background
from vtr_vllm.errors import JobConflict, JobsBusy, RequestError

__all__ = ["Runner"]

logger = logging.getLogger("vllm.vtr")

MOST_QUEUED = 100
"""Jobs that wait for a slot, each with a folder."""

_LOCK_POLL_SECONDS = 0.1
_RETRY_SECONDS = (1.0, 60.0)
"""Between two tries to write how a job ended: at first, and at most."""
_REASON_BYTES = 2000


class Runner:
    """Works off the queued jobs of a store; all methods are called on one event loop.

    A job's process holds the lock of its folder, so no second one works there, whoever died in
    between. It ends with the service (see ``guard``), and the job goes back into the queue.
    """

    def __init__(
        self,
        store: JobStore,
        sources: Sources,
        command: Sequence[str],
        grace_seconds: float,
    ) -> None:
        self._store = store
        self._sources = sources
        self._command = tuple(command)
        self._grace_seconds = grace_seconds
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._inputs: dict[str, asyncio.StreamWriter] = {}
        self._slots: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._unwritten: dict[str, OSError] = {}

    def start(self) -> None:
        """Take up what an earlier service left, oldest first, and open the slots."""
        observe_background("jobs", failures=0)
        for job in reversed(self._store.newest()):
            if job.state == "running":
                state = "cancelled" if job.cancel_requested else "queued"
                job = self._store.update(job.id, state=state)
            if job.state == "queued":
                self._queue.put_nowait(job.id)
        self._slots = [asyncio.create_task(self._work()) for _ in range(self._sources.workers)]

    async def stop(self) -> None:
        """End all searches, cleanly; their jobs are queued for the next service."""
        self._stop.set()
        for pipe in self._inputs.values():
            pipe.close()
        for _ in self._slots:
            self._queue.put_nowait(None)
        await asyncio.gather(*self._slots, return_exceptions=True)

    def why_unhealthy(self) -> str | None:
        """None while every slot works; else what holds one up: job files that cannot be written."""
        for job_id, failed in self._unwritten.items():
            return f"how job {job_id} ended cannot be written ({failed}); it is tried again"
        for slot in self._slots:
            if slot.done() and (err := slot.exception()):
                return f"a worker slot stopped ({type(err).__name__}: {err}); start again"
        return None

    def check_room(self) -> None:
        """Raise JobsBusy where as many jobs wait as may."""
        if len(self._store.newest("queued")) >= MOST_QUEUED:
            raise JobsBusy(
                f"{MOST_QUEUED} jobs are queued, as many as may wait here; cancel some, or come again"
                " when some have ended",
                retry_after=60,
            )

    def submit(self, job_id: str) -> None:
        """Have a queued job worked off."""
        self._queue.put_nowait(job_id)

    def cancel(self, job_id: str) -> Job:
        """A queued job is cancelled now, a running one once its process has stopped.

        Raises UnknownJob, and JobConflict for a job that has ended.
        """
        job = self._store.get(job_id)
        if job.state == "queued":
            return self._store.update(job_id, state="cancelled")
        if job.state != "running":
            raise JobConflict(
                f"job {job_id} is {job.state}; only a queued or running one can be cancelled"
            )
        job = self._store.update(job_id, cancel_requested=True)
        if job_id in self._inputs:
            self._inputs[job_id].close()
        return job

    def resume(self, job_id: str) -> Job:
        """Queue a job again that was cancelled, failed, or had a time limit.

        Its search continues from its journal. Raises UnknownJob, and JobConflict for any other job.
        """
        job = self._store.get(job_id)
        limited = job.state == "done" and job.spec.max_minutes is not None
        if job.state not in ("cancelled", "failed") and not limited:
            raise JobConflict(
                f"job {job_id} is {job.state}; only one that was cancelled, failed or had"
                " max_minutes can be resumed"
            )
        self.check_room()
        job = self._store.update(
            job_id, state="queued", cancel_requested=False, exit=None, reason=None
        )
        self.submit(job_id)
        return job

    async def _work(self) -> None:
        while not self._stop.is_set():
            job_id = await self._queue.get()
            if job_id is None:
                return
            try:
                lock = await self._lock(job_id)
                if lock is None:
                    continue
                try:
                    end = await self._run(job_id, lock)
                finally:
                    os.close(lock)
            except OSError as err:  # of this job alone: the slot goes on
                logger.exception("VTR: job %s cannot be worked off", job_id)
                observe_background("jobs", failures=1)
                end = {"state": "failed", "reason": str(err)}
            await self._end(job_id, end)

    async def _end(self, job_id: str, end: dict[str, Any]) -> None:
        """Write how a job ended, until that works: else it would be running for good.

        A service that stops leaves that to the next, which queues what it finds running.
        """
        wait, most = _RETRY_SECONDS
        while True:
            try:
                self._store.update(job_id, **end)
            except OSError as err:
                logger.error("VTR: how job %s ended cannot be written: %s", job_id, err)
                observe_background("jobs", failures=1)
                self._unwritten[job_id] = err
            else:
                self._unwritten.pop(job_id, None)
                return
            if self._stop.is_set():
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)
            wait = min(2 * wait, most)

    async def _lock(self, job_id: str) -> int | None:
        """The lock of the job's folder; None if the job is not, or no longer, to be run.

        It is taken while a process of an earlier service is still stopping.
        """
        while self._store.get(job_id).state == "queued" and not self._stop.is_set():
            lock = try_lock(self._store.folder(job_id) / "lock")
            if lock is not None:
                return lock
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        return None

    async def _run(self, job_id: str, lock: int) -> dict[str, Any]:
        """One attempt, from ``running`` to what it leads to; OSError passes through."""
        job = self._store.get(job_id)
        self._store.update(job_id, state="running", attempts=job.attempts + 1)
        log = self._store.folder(job_id) / "stderr.log"
        begun = log.stat().st_size if log.exists() else 0
        try:
            code = await self._search(job, lock)
        except RequestError as err:  # what was allowed once, and is no more
            return {"state": "failed", "reason": str(err)}
        if code == 0:
            return {"state": "done", "exit": code}
        if self._store.get(job_id).cancel_requested:
            return {"state": "cancelled", "exit": code}
        if self._stop.is_set():
            return {"state": "queued"}
        reason = _last_line(log, begun) or f"the search ended with exit code {code}"
        return {"state": "failed", "exit": code, "reason": reason}

    async def _search(self, job: Job, lock: int) -> int:
        """Run the search to its end; returns its exit code, raises RequestError of its spec."""
        folder = self._store.folder(job.id)
        events = folder / "events.jsonl"
        _end_last_line(events)
        command = [*self._command, *self._sources.arguments(job.spec)]
        command += ["--out", str(folder / "out"), "--events", str(events)]
        # -I -S: the guard needs no package, and starts at once
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(self._grace_seconds), *command]
        with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
            process = await asyncio.create_subprocess_exec(
                *guarded,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C is for the service, which stops its jobs itself
            )
        assert process.stdin is not None
        self._inputs[job.id] = process.stdin
        try:
            if self._stop.is_set() or self._store.get(job.id).cancel_requested:
                process.stdin.close()
            return await process.wait()
        finally:
            del self._inputs[job.id]


def _end_last_line(path: Path) -> None:
    """A process that was killed may have left half a line: what follows must not join it."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _last_line(path: Path, start: int) -> str | None:
    """The last line with text in it behind the byte ``start``."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - _REASON_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
