"""What one server answers, and when it says to come again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest

from vtr_vllm.search import servers
from vtr_vllm.search.servers import Trouble, send

NOW = 1_800_000_000


def at(seconds: int) -> str:
    """A date as HTTP writes it."""
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        (at(90), 90.0),
        (at(-90), 0.0),
        ("soon", None),
        ("-1", None),
    ],
)
@pytest.mark.parametrize(("status", "full"), [(429, True), (503, False)])
def test_how_long_a_server_asks_to_wait(
    monkeypatch: pytest.MonkeyPatch, header: str | None, wait: float | None, status: int, full: bool
) -> None:
    monkeypatch.setattr(servers, "time", lambda: float(NOW))
    headers = {} if header is None else {"Retry-After": header}
    assert asked(httpx.Response(status, text="later", headers=headers)) == Trouble(
        f"HTTP {status} later", wait, full
    )


def test_every_other_answer_is_one() -> None:
    for status in (200, 400, 404):
        found = asked(httpx.Response(status, headers={"Retry-After": "7"}))
        assert isinstance(found, httpx.Response)
        assert found.status_code == status


def asked(answer: httpx.Response) -> httpx.Response | Trouble:
    """What a request to a server with that answer comes to."""

    async def ask() -> httpx.Response | Trouble:
        transport = httpx.MockTransport(lambda request: answer)
        async with httpx.AsyncClient(transport=transport) as client:
            return await send(client, "http://server/health")

    return asyncio.run(ask())
