"""Offers of another protocol are ignored (RFC 9110, section 7.8), over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.http.echo import echoing, talk

OFFERS = {
    "h2c, as Java sends it": (
        "Connection: Upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        "Upgrade: h2c",
    ),
    "TLS": ("Connection: upgrade, keep-alive", "Upgrade: TLS/1.0"),
    "several": ("Upgrade: h2c, IRC/6.9", "Connection: keep-alive, Upgrade"),
    "no connection header": ("Upgrade: h2c",),
}
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with echoing() as port:
        yield port


def head(offer: tuple[str, ...], *more: str) -> bytes:
    return "\r\n".join(("POST /asked HTTP/1.1", *offer, "Host: a", *more, "", "")).encode()


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("size", [0, 3, 200_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("split", [False, True], ids=["at once", "in pieces"])
def test_the_request_is_answered_and_so_is_the_next(
    port: int, offer: tuple[str, ...], size: int, chunked: bool, split: bool
) -> None:
    body = b"x" * size
    if chunked:
        begun = head(offer, "Transfer-Encoding: chunked")
        body = (b"%x\r\n%s\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"
    else:
        begun = head(offer, f"Content-Length: {size}")
    pieces = (begun[:50], begun[50:], body, NEXT) if split else (begun + body + NEXT,)
    said = talk(port, *pieces)
    assert f"/asked {size};".encode() in said, said[:300]
    assert b"/next 0;" in said, said[:300]
    assert said.count(b"HTTP/1.1 200") == 2


def test_a_proxys_method_is_refused(port: int) -> None:
    said = talk(port, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400")


def test_no_http_is_refused(port: int) -> None:
    assert talk(port, b"\x16\x03\x01\x02\x00 not HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_websocket_is_switched_to(port: int) -> None:
    said = talk(
        port,
        b"GET /talk HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )
    assert said.startswith(b"HTTP/1.1 101")
    assert b"switched" in said
