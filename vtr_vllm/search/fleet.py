"""Requests to a fleet of running servers: one queue, and servers that fail and come back."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

import httpx

from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.search.servers import Served, Trouble, checked, error_text, inspect, send

TRIES = 5
"""Times that one request may fail; being told to come later (429) is no failure of its own."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds until a server that failed is probed: doubled each time, up to the longest."""

_CONNECT_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 2.0  # less than vLLM's 5, so that no connection closes as we send

logger = logging.getLogger(__name__)
R = TypeVar("R")


@dataclass(frozen=True)
class FleetRequest(Generic[R]):
    """One chat completion."""

    name: str
    """What a failure calls it."""
    body: Callable[[], bytes]
    """The JSON body, made in a thread once a server has room for it."""
    read: Callable[[httpx.Response], R]
    """Gets every answer but 429 and 5xx, which are tried again; what it raises ends the run."""


@dataclass(frozen=True)
class Replies(Generic[R]):
    """What was read from the answers, in the order asked, and how full the servers were."""

    answers: tuple[R, ...]
    busy: float
    """Requests in flight, summed over seconds."""
    room: float
    """Requests that the servers that were up could have had in flight, summed alike."""


class Fleet:
    """Running servers of one model; nothing stays open between calls.

    ``in_flight``: requests at a time and server. ``patience``: seconds without an answer after
    which a request counts as failed, and after which a fleet that is down as a whole is given up.
    Raises EvaluationFailed for a server that cannot be reached, ConfigurationError for one that
    is no VTR server or differs from the others.
    """

    def __init__(
        self, urls: Sequence[str], in_flight: int, patience: float, api_key: str | None
    ) -> None:
        if not urls or in_flight < 1 or patience <= 0:
            raise ConfigurationError(
                f"{len(urls)} servers with {in_flight} requests in flight and {patience} s of"
                " patience; give at least one server, one request, and more than 0 s"
            )
        self.retries = 0
        """Requests that were put back into the queue, since the start."""
        self._urls = [checked(url) for url in urls]
        self._in_flight, self._patience = in_flight, patience
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._down: dict[str, str] = {}  # server -> why, at the end of the last run
        self.served = asyncio.run(self._agree())

    def run(self, requests: Sequence[FleetRequest[R]]) -> Replies[R]:
        """Send every request to whichever server has room.

        Raises EvaluationFailed when a request failed TRIES times, or when all servers are down for
        longer than ``patience``.
        """
        return asyncio.run(self._run(requests))

    async def _run(self, requests: Sequence[FleetRequest[R]]) -> Replies[R]:
        servers = [_Server(url, self._down.get(url)) for url in self._urls]
        async with self._client() as client:
            run = _Run(client, servers, self.served, self._in_flight, self._patience)
            try:
                return await run.finish(requests)
            finally:
                self.retries += run.retries
                self._down = {s.url: s.reason for s in servers if not s.up.is_set()}

    async def _agree(self) -> Served:
        """What all servers serve."""
        async with self._client() as client:
            answers = await asyncio.gather(*(inspect(client, url) for url in self._urls))
        said = list(zip(self._urls, answers, strict=True))
        if silent := [(url, found.reason) for url, found in said if isinstance(found, Trouble)]:
            raise EvaluationFailed(
                f"{_listed(silent)}\nstart these servers, or leave them out of the list"
            )
        found = {served for served in answers if isinstance(served, Served)}
        if len(found) > 1:
            raise ConfigurationError(
                f"the servers differ, and their answers would too:\n{_listed(said)}\n"
                "give servers of one model under one name, and of one vLLM"
            )
        return found.pop()

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(self._patience, connect=_CONNECT_SECONDS),
            # A transport of one's own takes no proxy of the environment, and SSL_CERT_FILE still.
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_SECONDS)
            ),
        )


@dataclass
class _Server:
    """One server during one run."""

    url: str
    was_down: str | None
    """Why it was down at the end of the last run; it is probed before it is used."""
    in_flight: int = 0
    failures: int = 0
    """Since its last answer."""
    failing_since: float | None = None
    """Monotonic seconds, at the first failure since its last answer."""
    reason: str = ""
    """Of its last failure."""
    wait: float = 0.0
    """Seconds until it is probed."""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    down: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.was_down is None:
            self.up.set()
        else:
            self.reason = self.was_down
            self.down.set()


class _Run:
    """One list of requests on its way through the servers."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        servers: Sequence[_Server],
        served: Served,
        in_flight: int,
        patience: float,
    ) -> None:
        self.retries = 0
        self._client, self._servers, self._served = client, servers, served
        self._in_flight, self._patience = in_flight, patience
        self._queue: asyncio.Queue[int] = asyncio.Queue()
        self._failed: Counter[int] = Counter()
        self._busy = self._room = 0.0
        self._last = monotonic()

    async def finish(self, requests: Sequence[FleetRequest[R]]) -> Replies[R]:
        """Answer all; the first exception of any part ends every other."""
        answers: dict[int, R] = {}

        async def work(server: _Server) -> None:
            while True:
                await server.up.wait()
                index = await self._queue.get()
                if not server.up.is_set():  # it failed while this waited for work
                    self._queue.put_nowait(index)
                elif (response := await self._ask(server, index, requests[index])) is not None:
                    answers[index] = requests[index].read(response)
                self._queue.task_done()

        for index in range(len(requests)):
            self._queue.put_nowait(index)
        parts = [asyncio.create_task(self._queue.join())]
        for server in self._servers:
            parts.append(asyncio.create_task(self._tend(server)))
            parts += [asyncio.create_task(work(server)) for _ in range(self._in_flight)]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        return Replies(tuple(answers[i] for i in range(len(requests))), self._busy, self._room)

    async def _ask(
        self, server: _Server, index: int, request: FleetRequest[R]
    ) -> httpx.Response | None:
        """The answer; None if there was none and the request is in the queue once more."""
        body = await asyncio.to_thread(request.body)
        with self._counted(server):
            found = await send(self._client, f"{server.url}/v1/chat/completions", body)
        if isinstance(found, httpx.Response):
            server.failures, server.failing_since = 0, None
            return found
        self.retries += 1
        self._failed[index] += not found.full
        if server.up.is_set():  # else another request of the same moment has said so
            self._fail(server, found)
        if self._failed[index] == TRIES:
            raise EvaluationFailed(
                f"{request.name} failed {TRIES} times, the last time on {server.url}:"
                f" {found.reason}\n{self._reasons()}"
            )
        self._queue.put_nowait(index)
        return None

    async def _tend(self, server: _Server) -> None:
        """Bring the server back whenever it is down."""
        while True:
            await server.down.wait()
            await asyncio.sleep(server.wait)
            if trouble := await self._probe(server):
                self._fail(server, trouble)
                continue
            self._count()
            server.down.clear()
            server.up.set()
            logger.warning("%s is used again", server.url)

    async def _probe(self, server: _Server) -> Trouble | None:
        """None if the server is healthy; raises ConfigurationError if it is another one now."""
        health = await send(self._client, f"{server.url}/health")
        if isinstance(health, Trouble):
            return health
        if health.status_code != httpx.codes.OK:
            return Trouble(f"/health: {error_text(health)}")
        served = await inspect(self._client, server.url)
        if isinstance(served, Trouble):
            return served
        if served != self._served:
            raise ConfigurationError(
                f"{server.url} came back with {served}, the search began with {self._served};"
                " serve that again, or leave the server out of the list"
            )
        return None

    def _fail(self, server: _Server, trouble: Trouble) -> None:
        """Use the server no more until it is healthy; raises EvaluationFailed if none is left."""
        self._count()
        now = monotonic()
        server.up.clear()
        server.down.set()
        server.reason = trouble.reason
        server.failing_since = now if server.failing_since is None else server.failing_since
        if trouble.wait is None:
            server.wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(server.failures, 10))
        else:
            server.wait = min(self._patience, trouble.wait)
        server.failures += 1
        logger.warning("%s: %s; tried again in %.1f s", server.url, trouble.reason, server.wait)
        since = [s.failing_since for s in self._servers if s.failing_since is not None]
        if len(since) == len(self._servers) and now - max(since) > self._patience:
            raise EvaluationFailed(
                f"no server has answered for {self._patience:.0f} s; bring them back and run the"
                f" same command again\n{self._reasons()}"
            )

    def _reasons(self) -> str:
        """The last failure of each server that had one."""
        return _listed([(s.url, s.reason) for s in self._servers if s.reason])

    @contextmanager
    def _counted(self, server: _Server) -> Iterator[None]:
        self._count()
        server.in_flight += 1
        try:
            yield
        finally:
            self._count()
            server.in_flight -= 1

    def _count(self) -> None:
        """Add what passed since the last call; before every change of what is in flight or up."""
        now = monotonic()
        seconds, self._last = now - self._last, now
        for server in self._servers:
            self._busy += server.in_flight * seconds
            room = self._in_flight if server.up.is_set() else server.in_flight
            self._room += room * seconds


def _listed(pairs: Sequence[tuple[str, object]]) -> str:
    return "\n".join(f"  {url}: {what}" for url, what in pairs)
