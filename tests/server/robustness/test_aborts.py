"""Clients that go away: within their body, before the answer, in the middle of it."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from urllib.parse import urlsplit

import pytest

from tests.server.bad_input import CHAT, chat_body
from tests.server.conftest import NAME, Server
from tests.server.robustness.watching import Neighbour, counts, outcomes, settled, total

AT_ONCE = 20
READS = 4096

pytestmark = pytest.mark.engine


def request(draw: random.Random, host: str) -> bytes:
    """A long valid request, streamed or not, reduced or not."""
    asks = (None, {"budget": 0.5}, {"budget": 0.25, "trace": True}, {"tier": "economy"})
    more = {"stream": draw.random() < 0.7, "vtr": draw.choice(asks)}
    body = chat_body(NAME, **more) | {"max_tokens": 120, "ignore_eos": True}
    content = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def leave(server: Server, seed: int) -> bool:
    """One client; returns whether the server had all of its request before it left.

    A reset may take with it what the server has not read yet: then nobody can tell.
    """
    draw = random.Random(seed)
    place = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    sent = request(draw, place.netloc)
    when = draw.choice(("in the body", "before the answer", "in the answer", "in the answer"))
    if when == "in the body":
        sent = sent[: draw.randrange(len(sent))]
    writer.write(sent)
    await writer.drain()
    if when == "before the answer":
        await asyncio.sleep(draw.uniform(0, 0.5))
    elif when == "in the answer":
        for _ in range(draw.randrange(1, 6)):
            await reader.read(READS)
    if draw.random() < 0.5 and when != "before the answer":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    return when == "in the answer"


@pytest.mark.parametrize("clients", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_clients_that_leave_leave_nothing_behind(clients: int, server: Server) -> None:
    async def run() -> int:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> bool:
            async with places:
                return await leave(server, seed)

        return sum(await asyncio.gather(*(one(seed) for seed in range(clients))))

    with server.client() as client:
        neighbour = Neighbour(server)
        before = settled(client)
        with neighbour:
            arrived = asyncio.run(run())
        after = settled(client)
        known = outcomes(after) - outcomes(before)
        assert not (outcomes(before) - outcomes(after)), "counts only rise"
        assert known["error"] == known["timeout"] == known["refused"] == known["client_error"] == 0
        assert known["ok"] >= neighbour.answered
        assert known["aborted"] > 0
        assert arrived + neighbour.answered <= known.total() <= clients + neighbour.answered
        assert total(counts(client), "vllm:num_requests_running") == 0
