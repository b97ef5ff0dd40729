"""One request on its way through the gate: its body and its time are bounded, its answer marked.

A request that is cut off is told so by a disconnect message, not by cancelling its task alone:
vLLM's routes run their handler in a task of its own and abort the engine's request when the client
is gone. Cancellation comes after GRACE_SECONDS, or at once where nothing listens.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtr_server.gate.scopes import route_path
from vtr_server.http.errors import error_response, http_error_body, in_form_of, is_openais
from vtr_server.operations.outcomes import Outcome, outcome_of, outcome_of_status
from vtr_server.policy.settings import LimitSettings
from vtr_vllm.errors import (
    BodyTimeout,
    BodyTooLarge,
    RequestTimeout,
    VTRError,
)

__all__ = ["Exchange", "refusal"]

logger = logging.getLogger("vllm.vtr")

Headers = list[tuple[bytes, bytes]]

GRACE_SECONDS = 5.0
"""For an application that was told that its client is gone, and for a client to take an error."""

BODY_VALUES = 500_000
"""Of a body of JSON: an empty list of two bytes takes 64 once it is read, and time on the event loop."""
_BEFORE_A_VALUE = (b",", b"[", b"{")

SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""On every answer, where the route has not set its own."""

_GONE = {"http": {"type": "http.disconnect"}, "websocket": {"type": "websocket.disconnect"}}
_TRY_AGAIN_LATER = 1013
"""Close code of a WebSocket (RFC 6455 registry)."""


def refusal(err: VTRError | HTTPException, path: str) -> Response:
    """The answer that is an error, in the form of the API at ``path``."""
    if isinstance(err, HTTPException):
        body = http_error_body(err.status_code, err.detail)
        return JSONResponse(in_form_of(path, err.status_code, body), err.status_code)
    response = error_response(err, path)
    if isinstance(err, BodyTooLarge | BodyTimeout):
        response.headers["connection"] = "close"  # the rest of the body is not wanted
    return response


class Exchange:
    """An ASGI ``receive`` and ``send`` around the server's own."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: LimitSettings, request_id: bytes
    ) -> None:
        self.failure: VTRError | HTTPException | None = None
        """Why it was cut off; None while it was not."""
        self.arrived = time.monotonic()
        """When its head had been read; its body may still be on its way."""
        self._loop = asyncio.get_running_loop()
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._request_id = request_id
        self._headers = (*SECURITY, (b"x-request-id", request_id))
        self._gone = _GONE[scope["type"]]
        self._begun = 0.0
        self._seconds: float | None = None
        self.has_body = scope["type"] == "http" and has_body(scope.get("headers", ()))
        self._on_body: Callable[[], None] = lambda: None
        self._body_done = not self.has_body
        self._body_bytes = 0
        self._body_values = 0
        self._is_json = may_be_json(scope.get("headers", ()))
        self._waiting: set[asyncio.Timeout] = set()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._cancelled = False
        self._content_type = b""
        self._status: int | None = None
        self._started = False
        self._finished = False
        self._left = False

    @property
    def outcome(self) -> Outcome:
        """How it ended, for a request that no route of ours counts."""
        if self.failure is not None:
            return outcome_of(self.failure)
        if self._left:
            return "aborted"
        if self._status is None or not self._finished:
            return "error"
        return outcome_of_status(self._status)

    async def run(
        self, app: ASGIApp, seconds: float | None, on_body: Callable[[], None] = lambda: None
    ) -> None:
        """Let ``app`` answer, within ``seconds`` where they are given.

        ``on_body`` is called when the whole body is here; a VTRError that it raises ends the request.
        What ``app`` raises is logged, and answered here: outside of the gate an answer has no headers of ours.
        """
        self._on_body = on_body
        self._task = asyncio.current_task()
        self._begun = self._loop.time()
        self._seconds = seconds
        self._wait_until(min(self._limits.body_seconds, seconds or math.inf))
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._cancelled or (self._task and self._task.uncancel() > 0):
                raise  # someone else's
        except ClientDisconnect:
            if self.failure is None:
                raise
        except Exception as err:
            name = self._request_id.decode()
            logger.error("VTR: request %s met an error that nothing handles", name, exc_info=err)
            if self.failure is None:
                if self._started:
                    raise  # the server breaks the answer off
                self.failure = VTRError(
                    "the request met a mistake in this server; report it, with what the server's log"
                    f" says of request {name}"
                )
        finally:
            for handle in (self._timer, self._killer):
                if handle:
                    handle.cancel()
            if self.failure is not None:
                await self._say_why()

    def cut_off(self, err: VTRError) -> None:
        """End the request; what it is answered is ``err``, if that can still be said."""
        if self.failure is not None:
            return
        self.failure = err
        if not self._waiting:
            self._cancel()
            return
        for waiting in self._waiting:
            if not waiting.expired():
                waiting.reschedule(self._loop.time())
        self._killer = self._loop.call_later(GRACE_SECONDS, self._cancel)

    async def receive(self) -> Message:
        """The next message of the client; a disconnect once the request is cut off."""
        if self.failure is not None:
            return self._gone
        waiting = asyncio.timeout(None)  # until cut_off gives it a time
        self._waiting.add(waiting)
        try:
            async with waiting:
                message = await self._receive()
        except TimeoutError:
            return self._gone
        finally:
            self._waiting.discard(waiting)
        if message["type"] == "http.request":
            if (failure := self._count_body(message.get("body", b""))) is not None:
                self.failure = failure
                return self._gone
            if not message.get("more_body", False) and not self._body_done:
                return self._body_is_here(message)
        elif message["type"].endswith(".disconnect"):
            self._left = self._left or not self._finished
        return message

    def _count_body(self, part: bytes) -> BodyTooLarge | None:
        """Why the body is refused with this part of it; None while it is not."""
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.body_bytes:
            return body_too_large(self._body_bytes, self._limits.body_bytes)
        if self._is_json:
            self._body_values += sum(map(part.count, _BEFORE_A_VALUE))
            if self._body_values > BODY_VALUES:
                return BodyTooLarge(
                    f"the body has more than {BODY_VALUES} commas and brackets, and each of its values"
                    " would take many times its length; send a smaller prompt, or several requests"
                )
        return None

    def _body_is_here(self, message: Message) -> Message:
        self._body_done = True
        try:
            self._on_body()
        except VTRError as err:
            self.failure = err
            return self._gone
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on, with our headers; nothing once the request is cut off."""
        if self.failure is not None:
            return
        kind = message["type"]
        if kind in ("http.response.start", "websocket.accept"):
            self._started = True
            self._status = message.get("status", 101)
            given: Headers = list(message.get("headers", ()))
            names = {name.lower(): value for name, value in given}
            self._content_type = names.get(b"content-type", b"")
            message = {**message, "headers": with_missing(given, names, self._headers)}
        elif kind == "http.response.body":
            self._finished = not message.get("more_body", False)
        elif kind == "websocket.close":
            self._finished = True
        await self._send(message)

    async def refuse(self, err: VTRError | HTTPException) -> None:
        """Answer with an error instead of running the application."""
        self.failure = err
        await self._say_why()

    def _wait_until(self, seconds: float) -> None:
        """One timer at a time: most requests are done before it has to be set again."""
        self._timer = self._loop.call_at(self._begun + seconds, self._time_is_up, seconds)

    def _time_is_up(self, seconds: float) -> None:
        if not self._body_done and seconds >= self._limits.body_seconds:
            late = (
                f"{self._body_bytes} bytes of the body came within {seconds:g} s, and not its end;"
                " send it faster or send less"
            )
            self.cut_off(BodyTimeout(late))
        elif self._seconds is None:
            return
        elif seconds < self._seconds:
            self._wait_until(self._seconds)
        else:
            long = (
                f"the request took longer than {seconds:g} s, the most that this server allows;"
                " ask for fewer tokens, or send it again when the server is less busy"
            )
            self.cut_off(RequestTimeout(long))

    def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._cancelled = self._task.cancel()

    async def _say_why(self) -> None:
        """Tell the client the failure, in the form that is still possible."""
        if self._finished or self.failure is None:
            return
        self._finished = True
        try:
            async with asyncio.timeout(GRACE_SECONDS):  # the client may take nothing any more
                for message in self._last_words(self.failure):
                    await self._send(message)
        except (TimeoutError, OSError):
            return

    def _last_words(self, err: VTRError | HTTPException) -> list[Message]:
        if self._started:
            return self._last_of_begun(err)
        kind = self._scope["type"]
        if kind == "websocket" and "websocket.http.response" not in self._scope["extensions"]:
            return [{"type": "websocket.close", "code": _TRY_AGAIN_LATER}]
        response = refusal(err, route_path(self._scope))
        given = response.raw_headers
        headers = with_missing(given, dict(given), self._headers)
        prefix = "http.response" if kind == "http" else "websocket.http.response"
        return [
            {"type": f"{prefix}.start", "status": response.status_code, "headers": headers},
            {"type": f"{prefix}.body", "body": response.body},
        ]

    def _last_of_begun(self, err: VTRError | HTTPException) -> list[Message]:
        if self._scope["type"] == "websocket":
            return [{"type": "websocket.close", "code": _TRY_AGAIN_LATER}]
        if not self._content_type.startswith(b"text/event-stream"):
            return []  # an incomplete answer: the connection closes
        path = route_path(self._scope)
        event = b"data: " + bytes(refusal(err, path).body) + b"\n\n"
        event = event + b"data: [DONE]\n\n" if is_openais(path) else b"event: error\n" + event
        return [{"type": "http.response.body", "body": event, "more_body": False}]


def body_too_large(size: int, limit: int) -> BodyTooLarge:
    """The error of a body of ``size`` bytes, or of at least as many."""
    return BodyTooLarge(
        f"the body has {size} bytes or more; at most {limit} are allowed: send smaller images, or"
        " fewer"
    )


def may_be_json(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body is read as JSON: where no type is told, it is."""
    types = [value.lower() for name, value in headers if name == b"content-type"]
    return not types or any(b"json" in value for value in types)


def has_body(headers: Headers) -> bool:
    """Whether a body follows the head of a request (RFC 9112, section 6.3)."""
    lengths = [value for name, value in headers if name == b"content-length"]
    return lengths not in ([], [b"0"]) or any(name == b"transfer-encoding" for name, _ in headers)


def with_missing(
    given: Headers, names: Iterable[bytes], extra: Iterable[tuple[bytes, bytes]]
) -> Headers:
    """``given`` and those of ``extra`` whose names are not among ``names``."""
    return [*given, *(header for header in extra if header[0] not in names)]
