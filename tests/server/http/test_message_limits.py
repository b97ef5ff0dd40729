"""What comes before a request, or beside its body, ends: over real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
import uvicorn.config

from tests.server.http import echo
from tests.server.http.echo import echoing, talk
from vtr_server.http import message_limits
from vtr_server.http.message_limits import HEAD_BYTES, HTTPProtocol, install_protocol

BEGUN = b"GET /asked HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST /asked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSED = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
REFUSED_CHUNKS = CHUNKED.replace(b"/asked", b"/refused")
CLOSE = b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with echoing() as port:
        yield port


def pour(port: int, begun: bytes, piece: bytes, most: int) -> tuple[int, bytes]:
    """Send ``piece`` again and again until the server closes: bytes that it took, and what it said."""
    taken = 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(begun)
        try:
            while taken < most:
                connection.sendall(piece)
                taken += len(piece)
            return taken, b""
        except ConnectionError:
            pass
        try:
            return taken, connection.recv(4096)
        except ConnectionError:
            return taken, b""


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (BEGUN, b"A: b\r\n" * 4096),
        (BEGUN + b"A: ", b"x" * 32768),
        (b"GET /", b"x" * 32768),
        (CHUNKED + b"1;a=", b"x" * 32768),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"A: b\r\n" * 4096),
        (CHUNKED + b"1\r\nx\r\n0\r\nA: ", b"x" * 32768),
    ],
    ids=["headers", "a header", "an address", "a chunk's extension", "trailers", "a trailer"],
)
def test_what_never_ends_is_cut_off(port: int, begun: bytes, piece: bytes) -> None:
    # what the kernel's buffers take goes for sent
    taken, _ = pour(port, begun, piece, 64 << 20)
    assert taken < 32 << 20


def test_it_is_said_why(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    received, read = HTTPProtocol.data_received, threading.Event()

    def data_received(self: HTTPProtocol, data: bytes) -> None:
        received(self, data)
        read.set()

    monkeypatch.setattr(HTTPProtocol, "data_received", data_received)
    long = BEGUN + b"A: " + b"x" * (HEAD_BYTES // 2)
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(long)
        assert read.wait(60)  # apart from the first, whose length no read of the socket tells
        connection.sendall(b"x" * (HEAD_BYTES + 1))
        while got := connection.recv(4096):
            said += got
    assert said.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert said.endswith(b"More than 65536 bytes of headers.")


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_a_body_of_small_chunks_is_no_flood(port: int, size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    count = 400_000 // len(chunk)
    said = talk(port, CHUNKED, *[chunk * 1000] * (count // 1000 + 1), b"0\r\n\r\n", BEGUN + CLOSE)
    assert f"/asked {(count // 1000 + 1) * 1000 * size};".encode() in said


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(message_limits, "HEAD_SECONDS", 0.5)
    with echoing() as port:
        yield port


@pytest.mark.parametrize(
    ("sent", "said"),
    [(b"", b""), (b"\r\n", b""), (b"GET", b"HTTP/1.1 408"), (BEGUN, b"HTTP/1.1 408")],
    ids=["nothing", "empty lines", "a word", "half a head"],
)
def test_who_waits_too_long_is_left(hurried: int, sent: bytes, said: bytes) -> None:
    assert talk(hurried, sent)[: len(said) or None] == said


def test_the_next_head_of_a_connection_has_its_time_too(hurried: int) -> None:
    said = talk(hurried, BEGUN + b"\r\n" + b"GET /ne")
    assert b"/asked 0;" in said
    assert b"HTTP/1.1 408" in said


def test_an_answer_that_takes_longer_is_not_cut_off(
    hurried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "DELAY", 1.5)
    said = talk(hurried, BEGUN + b"\r\n" + BEGUN[:9])
    assert b"/asked 0;" in said


@pytest.mark.parametrize(
    "begun",
    [BEGUN + b"\r\n", CHUNKED + b"1\r\nx\r\n0\r\n\r\n", REFUSED + b"x" * 10],
    ids=["no body", "chunks", "a body that nobody awaits"],
)
def test_an_idle_connection_is_not_one_that_waits_for_a_head(hurried: int, begun: bytes) -> None:
    said = talk(hurried, begun, 1.0, BEGUN + CLOSE)
    assert b"/asked 0;" in said, said
    assert said.count(b"HTTP/1.1 200") == said.count(b"HTTP/1.1") == 2


def test_a_connection_is_idle_from_the_end_of_an_answer(
    hurried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "DELAY", 0.4)
    said = talk(hurried, BEGUN + b"\r\n", 1.2, BEGUN + CLOSE)
    assert said.count(b"HTTP/1.1 200") == said.count(b"HTTP/1.1") == 2


def test_the_rest_of_a_body_may_come_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_limits, "HEAD_SECONDS", 2.0)  # a loaded machine is not the fault
    with echoing() as port:
        said = talk(port, REFUSED, 0.2, b"x" * 10, 3.0, BEGUN + CLOSE)
    assert said.count(b"HTTP/1.1 200") == said.count(b"HTTP/1.1") == 2


def is_left(port: int, begun: bytes, piece: bytes) -> bool:
    """Whether the server closes on a client that says ``piece`` again and again, slowly."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        try:
            connection.sendall(begun)
            for _ in range(300):
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        return True
                connection.sendall(piece)
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize(
    "begun", [REFUSED.replace(b"10", b"9999"), REFUSED_CHUNKS], ids=["length", "chunked"]
)
def test_a_body_that_nobody_awaits_has_an_end(hurried: int, begun: bytes) -> None:
    assert is_left(hurried, begun, b"1\r\nx\r\n")


def test_empty_lines_are_no_life_between_two_requests() -> None:
    with echoing(keep_alive=1) as port:
        assert is_left(port, BEGUN + b"\r\n", b"\r\n")


def test_uvicorn_takes_ours_where_nothing_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    install_protocol()
    config = uvicorn.Config(echo.echo)
    config.load()
    assert config.http_protocol_class is HTTPProtocol
