"""Bodies and times have bounds, and a request that is cut off is aborted and told why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi.responses import StreamingResponse

from tests.server.gate.apps import Place
from tests.server.gate.test_middleware import code_of, post, run
from vtr_server.gate import exchange
from vtr_server.gate.context import RequestContext
from vtr_server.policy.settings import ServerSettings


def limited(**limits: Any) -> Place:
    return Place(ServerSettings.model_validate({"limits": limits}))


async def in_two(body: bytes) -> AsyncIterator[bytes]:
    yield body[:900]
    yield body[900:]


async def chunks(sizes: list[int], pause: float = 0.0) -> AsyncIterator[bytes]:
    for size in sizes:
        await asyncio.sleep(pause)
        yield b"x" * size


def test_a_body_at_the_limit_passes() -> None:
    assert post(limited(body_bytes=100), "/v1/echo", content=b"x" * 100).json()["bytes"] == 100
    streamed = post(limited(body_bytes=100), "/v1/echo", content=chunks([60, 40]))
    assert streamed.json()["bytes"] == 100


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    place = limited(body_bytes=100)
    answer = post(place, "/v1/echo", content=b"x" * 101)
    assert (answer.status_code, code_of(answer)) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert place.seen == []


def test_a_body_that_turns_out_too_large_is_refused() -> None:
    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10
            yield b"x" * 10

    sent = 0
    place = limited(body_bytes=100)
    answer = post(place, "/v1/echo", content=endless())
    assert (answer.status_code, code_of(answer)) == (413, "body_too_large")
    assert sent <= 120, "reading stops at the limit"
    assert place.gate.occupancy.in_flight == 0


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", ""])
def test_a_length_that_is_no_number_does_not_hide_a_large_body(length: str) -> None:
    place = limited(body_bytes=100)
    answer = post(place, "/v1/echo", content=b"x" * 101, headers={"Content-Length": length})
    assert answer.status_code == 413


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json; charset=utf-8"}])
def test_a_small_body_of_many_values_is_refused(
    headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read, it takes tens of times its bytes, of memory and of the event loop's time."""
    monkeypatch.setattr(exchange, "BODY_VALUES", 1000)

    def answer(body: bytes) -> httpx.Response:
        place = limited(body_bytes=10_000)
        return post(place, "/v1/echo", content=in_two(body), headers=headers)

    assert answer(b"[" + b"[]," * 499 + b"]").status_code == 200
    refused = answer(b"[" + b"[]," * 500 + b"]")
    assert (refused.status_code, code_of(refused)) == (413, "body_too_large")
    assert "1000 commas and brackets" in refused.text


def test_what_is_no_json_may_have_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_VALUES", 10)
    sent = {"Content-Type": "multipart/form-data; boundary=a"}
    assert post(limited(), "/v1/echo", content=b"," * 100, headers=sent).status_code == 200


def test_a_slow_body_is_refused() -> None:
    place = limited(body_seconds=0.1)
    answer = post(place, "/v1/echo", content=chunks([1] * 1000, pause=0.01))
    assert (answer.status_code, code_of(answer)) == (408, "body_timeout")
    assert place.gate.occupancy.in_flight == 0
    assert place.seen == []


def test_the_time_for_a_body_does_not_bound_the_answer() -> None:
    place = limited(body_seconds=1.0)

    async def wait() -> httpx.Response:
        async with place.client() as client:
            asked = asyncio.create_task(client.post("/v1/slow", content=b"x"))
            await asyncio.sleep(1.5)
            place.release.set()
            return await asked

    assert run(wait()).status_code == 200


@pytest.mark.parametrize("path", ["/v1/slow", "/v1/deaf"])
def test_an_answer_that_takes_too_long_is_aborted(path: str) -> None:
    place = limited(request_seconds=0.1)
    answer = post(place, path, content=b"x")
    assert (answer.status_code, code_of(answer)) == (504, "request_timeout")
    assert place.seen == ["aborted"]
    assert place.gate.occupancy.in_flight == 0


def test_a_stream_that_takes_too_long_ends_with_an_error() -> None:
    place = limited(request_seconds=3.0)  # enough for its first event
    answer = post(place, "/v1/stream", content=b"x")
    assert answer.status_code == 200
    events = [event for event in answer.text.split("\n\n") if event]
    assert events[0] == "data: 1"
    assert '"code":"request_timeout"' in events[1].replace(" ", "")
    assert events[2:] == ["data: [DONE]"]
    assert place.seen == ["aborted"]


def test_a_client_that_reads_nothing_is_given_up() -> None:
    """Its connection's buffer is full, so that a send never returns."""
    place = limited(request_seconds=0.1)
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if body:
            return body.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/stream",
        "query_string": b"",
        "headers": [],
        "client": ("192.0.2.1", 1),
        "server": ("test", 80),
    }
    asyncio.run(asyncio.wait_for(place.app(scope, receive, send), 30))
    assert place.gate.occupancy.in_flight == 0
    assert RequestContext.of(scope).cut_off.code == "request_timeout"  # type: ignore[union-attr]


def test_a_client_that_leaves_is_not_answered() -> None:
    place = Place()

    async def leave() -> None:
        async with place.client() as client:
            asked = asyncio.create_task(client.post("/v1/deaf"))
            while not place.gate.occupancy.in_flight:
                await asyncio.sleep(0.001)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    run(leave())
    assert place.gate.occupancy.in_flight == 0
    assert place.seen == ["aborted"]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the server logs: vLLM's loggers hand nothing on."""
    logger = logging.getLogger("vllm.vtr")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def failing() -> Place:
    """With routes that raise what nothing handles, before their answer and within it."""
    place = Place()

    async def broken() -> None:
        raise RuntimeError("broken, with a secret")

    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        raise RuntimeError("broken, with a secret")

    async def breaks_off() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    for path in ("/v1/broken", "/v1/messages", "/version"):
        place.app.add_api_route(path, broken, methods=["POST"])
    place.app.add_api_route("/v1/breaks_off", breaks_off, methods=["POST"])
    return place


@pytest.mark.parametrize("path", ["/v1/broken", "/v1/messages", "/version"])
def test_an_error_that_nothing_handles_is_answered_as_any_other(
    path: str, logged: pytest.LogCaptureFixture
) -> None:
    place = failing()
    answer = post(place, path, headers={"X-Request-Id": "asked-1"})
    assert (answer.status_code, code_of(answer)) == (500, "internal")
    assert ("type" in answer.json()) == (path == "/v1/messages")
    assert answer.headers["x-request-id"] == "asked-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "connection" not in answer.headers
    assert "secret" not in answer.text
    assert "asked-1" in logged.text
    assert "RuntimeError: broken, with a secret" in logged.text
    assert place.gate.occupancy.in_flight == 0


def test_an_answer_that_fails_breaks_off(logged: pytest.LogCaptureFixture) -> None:
    place = failing()
    with pytest.raises((RuntimeError, ExceptionGroup)):
        post(place, "/v1/breaks_off", headers={"X-Request-Id": "asked-2"})
    assert "asked-2" in logged.text
    assert place.gate.occupancy.in_flight == 0


def test_neighbours_are_unharmed() -> None:
    place = limited(request_seconds=0.3, body_bytes=100)

    async def crowd() -> list[httpx.Response]:
        async with place.client() as client:
            asked = [client.post("/v1/slow"), client.post("/v1/echo", content=b"x" * 101)]
            asked += [client.post("/v1/echo", content=b"x") for _ in range(20)]
            return await asyncio.gather(*asked)

    codes = [answer.status_code for answer in run(crowd())]
    assert codes == [504, 413] + [200] * 20
