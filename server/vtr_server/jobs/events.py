"""A job's events as server-sent events: from any point on, until the job has ended."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.sse import ServerSentEvent

from vtr_server.callers import count
from vtr_server.jobs.protocol import FINISHED, Job
from vtr_vllm.errors import JobsBusy, RequestError

__all__ = ["MOST_OF_A_CALLER", "MOST_WATCHING", "Watchers", "check_offset", "follow"]

MOST_WATCHING, MOST_OF_A_CALLER = 64, 16
"""Streams at once: each looks at its job and its file several times a second."""
_POLL_SECONDS = 0.2


class Watchers:
    """The streams that are open, of all callers and of each."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Hold a place for one stream; raises JobsBusy."""
        if self._open[caller] >= MOST_OF_A_CALLER:
            raise JobsBusy(
                f"{MOST_OF_A_CALLER} event streams of yours are open, the most that one caller may have;"
                " end one, or ask for the job itself"
            )
        if self._open.total() >= MOST_WATCHING:
            raise JobsBusy(
                f"{MOST_WATCHING} event streams are open, the most that are served at once; come again"
                " later, or ask for the job itself"
            )
        count(self._open, caller, 1)
        try:
            yield
        finally:
            count(self._open, caller, -1)


def check_offset(path: Path, offset: int) -> None:
    """Raise RequestError unless ``offset`` is the id of an event of this file, or 0.

    An event's id is the byte in the file behind its line.
    """
    if offset == 0:
        return
    if path.exists() and offset <= path.stat().st_size:
        with path.open("rb") as file:
            file.seek(offset - 1)
            if file.read(1) == b"\n":
                return
    raise RequestError(
        f"Last-Event-ID {offset} is no event of this job; send the id of an event that you got, or"
        " none to start from the first"
    )


async def follow(
    look: Callable[[], Job], path: Path, offset: int
) -> AsyncIterator[ServerSentEvent]:
    """The events behind ``offset``, each under its kind, and a ``state`` event at each new state.

    ``state`` carries the job and no id. That of a finished job is the last event: what the search
    told is then all read, since a job ends after its process.
    """
    told = None
    while True:
        job = look()
        finished = job.state in FINISHED
        if not finished and job.state != told:
            yield _state(job)
        for line, end in _lines(path, offset):
            offset = end
            event = _event(line, end)
            if event is not None:
                yield event
        if finished:
            yield _state(job)
            return
        told = job.state
        await asyncio.sleep(_POLL_SECONDS)


def _lines(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """The whole lines behind ``offset``, each with the offset behind it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def _event(line: bytes, offset: int) -> ServerSentEvent | None:
    """None for half a line, which a killed process may have left: it told nothing."""
    try:
        values = json.loads(line)
        kind = values["kind"]
        return ServerSentEvent(raw_data=json.dumps(values), event=kind, id=str(offset))
    except (KeyError, TypeError, ValueError):
        return None


def _state(job: Job) -> ServerSentEvent:
    return ServerSentEvent(raw_data=job.model_dump_json(), event="state")
