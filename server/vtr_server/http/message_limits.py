"""HTTP/1.1 of which nothing grows, or waits, without an end, before a request has begun.

uvicorn's protocol takes headers of any number and length and waits for them for ever, as it does for
the extensions of chunks and for trailers: all of it before, or beside, what the gate sees.
"""

import asyncio
from http import HTTPStatus
from typing import Any

import uvicorn.config

from vtr_server.http.upgrade import OfferlessProtocol

__all__ = ["HEAD_BYTES", "HEAD_SECONDS", "HTTPProtocol", "install_protocol"]

HEAD_BYTES = 65536
"""Of a request line and headers, as of a body's trailers: those of h11, which vLLM runs with elsewhere.
Checked between two reads of the socket, of which one may bring 256 KiB."""
HEAD_SECONDS = 60.0
"""For a head to arrive, from the connection or from its first byte; and for the rest of a body whose
request was answered before, a refusal for example. A connection between two requests is idle: how
long it may be is uvicorn's business."""

_TOO_LONG = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_BESIDE_A_BYTE = 8
"""A body of chunks of one byte has six bytes beside each."""


class HTTPProtocol(OfferlessProtocol):
    """uvicorn's protocol; a head that is too long is answered by 431, one that is too slow by 408."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._messages = 0
        self._taken = 0
        """Bytes of the message that is being read, but for those read together with its first."""
        self._body = 0
        """How many of them are its body's."""
        self._in_head = False
        self._in_body = False
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._messages
        idle, was_in_body = self.timeout_keep_alive_task, self._in_body
        super().data_received(data)
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._stop_waiting()
            return
        if self._messages == before:
            self._taken += len(data)
        if self._is_answered() and not (self._in_head or self._in_body):
            # uvicorn took the end of a body, or an empty line, for the next request
            now = self.loop.time()
            end = now + self.timeout_keep_alive if was_in_body or idle is None else idle.when()
            self.timeout_keep_alive_task = self.loop.call_at(end, self.timeout_keep_alive_handler)
        if self._taken - self._body > HEAD_BYTES + _BESIDE_A_BYTE * self._body:
            self._refuse(_TOO_LONG, f"More than {HEAD_BYTES} bytes of headers.")

    def on_message_begin(self) -> None:
        self._messages += 1
        self._taken = self._body = 0
        self._in_head = True
        if self._waiting is None:
            self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self._is_answered() and not self.transport.is_closing():
            self._wait()

    def _is_answered(self) -> bool:
        """Whether every request that has begun is."""
        return self.cycle is not None and self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._time_is_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _time_is_up(self) -> None:
        self._waiting = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # for what is answered meanwhile the gate has its own times
        elif self._in_head:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"The headers did not arrive within {HEAD_SECONDS:g} s."
            )
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.logger.warning("Refused before its request began: %s", why)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(
                (
                    f"HTTP/1.1 {status.value} {status.phrase}\r\n"
                    "content-type: text/plain; charset=utf-8\r\n"
                    f"content-length: {len(why)}\r\nconnection: close\r\n\r\n{why}"
                ).encode("ascii")
            )
        self.transport.close()


def install_protocol() -> None:
    """Let every server of this process that leaves its protocol to uvicorn speak ours."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{HTTPProtocol.__name__}"
