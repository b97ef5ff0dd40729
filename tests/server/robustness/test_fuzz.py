"""Thousands of malformed requests beside a neighbour who must not notice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.server.conftest import Server, serve, store_schedules
from tests.server.robustness.bodies import Sent, requests
from tests.server.robustness.watching import Neighbour, memory, settled

AT_ONCE = 8
FEW, MANY, WARM_UP = 160, 10_000, 3000
GROWTH = 0.05
"""Of memory, after WARM_UP: what an allocator keeps moves by less."""

pytestmark = pytest.mark.engine


@pytest.fixture
def small_cache(tmp_path: Path) -> Iterator[Server]:
    """A server whose cache of processed images is full after the warm-up; vLLM's 4 GiB never are.

    Else each new image would be taken for a leak.
    """
    schedules, folder = tmp_path / "schedules", tmp_path / "server"
    schedules.mkdir()
    folder.mkdir()
    store_schedules(schedules)
    yield from serve(schedules, folder, "--mm-processor-cache-gb", "0.02")


def send_all(server: Server, sent: list[Sent]) -> list[tuple[Sent, httpx.Response]]:
    """All at once, each on a connection of its own."""

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            return await asyncio.gather(*(one(client, each) for each in sent))

    async def one(client: httpx.AsyncClient, each: Sent) -> httpx.Response:
        headers = [(k.encode(), v.encode("latin-1")) for k, v in each.headers]
        return await client.post(each.path, content=each.content, headers=headers)

    return list(zip(sent, asyncio.run(run()), strict=True))


def check(sent: Sent, answer: httpx.Response) -> None:
    """An answer with the facts, or an error below 500 in OpenAI's form."""
    what = f"{sent.path} {sent.headers} {sent.content[:2000]!r}: {answer.status_code}"
    assert answer.status_code < 500, f"{what} {answer.text[:500]}"
    assert answer.headers["x-request-id"], what
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.status_code == 200, what
        for event in events(answer.text):
            error = event.get("error") or (event if event.get("type") == "error" else None)
            assert error is None or is_error(error), f"{what} {event}"
        return
    body = answer.json()
    if answer.status_code == 200:
        assert body["vtr"]["kept_per_layer"], what
    else:
        assert is_error(body["error"]), f"{what} {body}"


def events(text: str) -> list[Any]:
    """The objects of a stream."""
    lines = (line.removeprefix("data: ") for line in text.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


def is_error(error: Any) -> bool:
    """Whether an error has OpenAI's form and is the client's."""
    code = error["code"]
    ours = isinstance(code, str) and code not in ("internal", "engine_not_ready", "engine_dead")
    theirs = isinstance(code, int) and 400 <= code < 500
    return (
        isinstance(error["message"], str)
        and bool(error["message"])
        and isinstance(error["type"], str)
        and "param" in error
        and (ours or theirs)
    )


def grow(count: int, start: int) -> list[Sent]:
    """``count`` requests, no two alike; the same for the same ``start``."""
    grown: dict[Sent, None] = {}
    while len(grown) < count:

        @seed(start + len(grown))
        @settings(
            max_examples=500,
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(requests())
        def collect(sent: Sent) -> None:
            grown[sent] = None

        collect()
    return list(grown)[:count]


def fuzz(server: Server, sent: list[Sent]) -> Counter[int]:
    """Send all, AT_ONCE at a time; returns how many got which status."""
    statuses: Counter[int] = Counter()
    for first in range(0, len(sent), AT_ONCE):
        for each, answer in send_all(server, sent[first : first + AT_ONCE]):
            check(each, answer)
            statuses[answer.status_code] += 1
    return statuses


def test_many_bodies(server: Server) -> None:
    with Neighbour(server):
        statuses = fuzz(server, grow(FEW, start=0))
    with server.client() as client:
        settled(client)
    assert statuses[200] > FEW / 10, statuses
    assert statuses[400] > FEW / 10, statuses


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_bodies_leave_nothing_behind(small_cache: Server) -> None:
    server = small_cache
    start = random.randrange(10**9)
    print(f"requests grown from {start}")
    with Neighbour(server) as neighbour:
        statuses = fuzz(server, grow(WARM_UP, start))
        warm = memory(server)
        statuses += fuzz(server, grow(MANY, start + 10**9))
        grown = memory(server) / warm - 1
    with server.client() as client:
        settled(client)
    print(
        f"{statuses}, {neighbour.answered} answers beside; memory {grown:+.2%} of {warm >> 20} MiB"
    )
    assert statuses.total() == WARM_UP + MANY
    assert grown < GROWTH
