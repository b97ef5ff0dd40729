"""The gate: what every request passes before a route sees it. Pure ASGI.

All counts are of one API server process: with ``--api-server-count 4`` four times as much fits.
"""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from vtr_server.gate.context import Caller, RequestContext
from vtr_server.gate.drain_flag import DrainFlag
from vtr_server.gate.exchange import GRACE_SECONDS, Exchange, body_too_large
from vtr_server.gate.keys import Keyring
from vtr_server.gate.occupancy import Occupancy, Place
from vtr_server.gate.rate import Buckets
from vtr_server.gate.scopes import BUDGETED, is_for_admin_port, needed_scope, route_path
from vtr_server.media.pixel_budget import PixelBudget
from vtr_server.media.request_media import begin_media
from vtr_server.operations.limit_metrics import observe_decoded_pixels
from vtr_server.operations.metrics import (
    UNKNOWN,
    begin_keys,
    observe_draining,
    observe_outcome,
    observe_refusal,
)
from vtr_server.operations.outcomes import outcome_of
from vtr_server.policy.exposure import is_loopback, refuse_foreign_page
from vtr_server.policy.settings import ServerSettings
from vtr_vllm.errors import (
    Draining,
    Forbidden,
    InvalidKey,
    RateLimited,
    VTRError,
    show,
)

__all__ = ["Gate", "GateMiddleware", "install"]

logger = logging.getLogger("vllm.vtr")

DRAIN_RETRY_SECONDS = 30
"""Retry-After while draining: about what a replacement needs to start."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_HEALTH = frozenset({"/health", "/ready", "/ping"})


class Gate:
    """The limits of one API server process, and what it counts for them."""

    def __init__(
        self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.draining = DrainFlag()
        """Once it is set, by ``begin_draining``, nothing new is taken and health is red."""
        self.occupancy = Occupancy(settings.limits)
        """Who is inside of requests of scope ``generate``."""
        self.pixels = PixelBudget(settings.limits.decoded_pixels, observe_decoded_pixels)
        """What they may have decoded at once."""
        self.adopt(settings)
        self._requests = Buckets(clock)
        self._vision_tokens = Buckets(clock)
        self._open: set[Exchange] = set()

    def adopt(self, settings: ServerSettings) -> None:
        """Hold to other settings from the next request on; what is counted stays."""
        self.settings = settings
        self.occupancy.adopt(settings.limits)
        self._keys = Keyring(settings.keys)
        begin_keys(key.name for key in settings.keys)
        self._admin_is_local = settings.admin is not None and is_loopback(settings.admin.host)

    def begin_draining(self) -> None:
        """Take nothing new from now on."""
        self.draining.set()
        observe_draining()

    def charge(self, context: RequestContext, vision_tokens: float) -> None:
        """Charge for the kept vision tokens of a prompt, which the engine gets if this returns.

        Raises RateLimited where requests that came at the same time have used up the allowance: it is
        overdrawn by one request at most. The first prompt of a request decides for all of them.
        """
        caller = context.caller
        per_minute = self._allowance(caller, "vision_tokens_per_minute")
        if not per_minute:
            return
        if not context.charged:
            self._check_vision_tokens(caller, per_minute)
            context.charged = True
        self._vision_tokens.charge(caller.bucket, per_minute, vision_tokens)

    async def drain(self, seconds: float) -> None:
        """Take nothing new, wait until all is answered, and cut off what is not by ``seconds``."""
        self.begin_draining()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        inside = self.occupancy
        logger.info("VTR drains: %d requests in flight, %g s for them", inside.in_flight, seconds)
        while (inside.in_flight or inside.uploads) and loop.time() < end:
            await asyncio.sleep(0.05)
        left = list(self._open)
        for exchange in left:
            exchange.cut_off(Draining("the server stops; send the request again"))
        end = loop.time() + 2 * GRACE_SECONDS
        while self._open and loop.time() < end:
            await asyncio.sleep(0.05)
        logger.info("VTR drained; %d requests were cut off", len(left))

    def health(self, path: str) -> VTRError | None:
        """Draining for a health route of a draining server."""
        return self._draining_error() if self.draining and path in _HEALTH else None

    def admit(
        self, scope: Scope, path: str, authorization: bytes | None, *, on_admin_port: bool = False
    ) -> Caller:
        """Who sends this request; raises the error that refuses it."""
        needed = needed_scope(path)
        if not on_admin_port and self._is_elsewhere(path):
            raise HTTPException(404, "Not Found")  # as for a path that no route has
        if self.draining and needed == "generate":
            raise self._draining_error()
        host = (scope.get("client") or ("-",))[0]
        if needed == "open" or self._is_open(needed, on_admin_port):
            if needed == "jobs" or (needed == "admin" and on_admin_port):
                headers = _read(scope["headers"])
                refuse_foreign_page(*(_text(headers.get(name)) for name in (b"origin", b"host")))
            return Caller(None, host)
        if needed == "admin" and on_admin_port and "admin" not in self._keys.scopes:
            raise Forbidden(
                "[admin] host leads beyond this machine, and no key has the scope admin: admin"
                " routes are closed; add a key with it (vtr keys new NAME --scope admin)"
            )
        key = self._keys.find(authorization)
        if key is None:
            raise InvalidKey(
                "the API key is missing or unknown; send Authorization: Bearer KEY, or X-Api-Key: KEY,"
                " with a key of this server"
            )
        if needed not in key.scopes:
            raise Forbidden(
                f"key {key.name} has the scopes {show(list(key.scopes))}, and {show(path)} needs"
                f" {needed}; use a key that has it"
            )
        return Caller(key, f"key {key.name}")

    def let_in(self, caller: Caller, *, has_body: bool) -> Place:
        """Give one request of scope ``generate`` a place; raises CallerBusy, Overloaded or RateLimited."""
        most = self._allowance(caller, "in_flight", of_all="in_flight_per_caller")
        place = self.occupancy.arrive(caller.bucket, most, has_body=has_body)
        try:
            if tokens := self._allowance(caller, "vision_tokens_per_minute"):
                self._check_vision_tokens(caller, tokens)
            requests = self._allowance(caller, "requests_per_minute")
            if requests and (wait := self._requests.take(caller.bucket, requests)):
                raise _rate_limited("requests", requests, wait)
        except RateLimited:
            self.occupancy.leave(place)
            raise
        return place

    async def pass_through(self, app: ASGIApp, exchange: Exchange, place: Place | None) -> None:
        """Run one request of a guarded route; one with a place has a bounded time."""
        self._open.add(exchange)
        try:
            if place is None:
                await exchange.run(app, None)
                return
            await exchange.run(
                app, self.settings.limits.request_seconds, lambda: self.occupancy.begin(place)
            )
        finally:
            self._open.discard(exchange)
            if place is not None:
                self.occupancy.leave(place)

    def _is_elsewhere(self, path: str) -> bool:
        """Whether the main port does not have a path: the admin port does, or nobody may."""
        if self.settings.admin:
            return is_for_admin_port(path)
        return path.startswith("/admin/") and not self._keys

    def _is_open(self, needed: str, on_admin_port: bool) -> bool:
        """Whether a guarded route needs no key on this server."""
        if needed == "admin" and on_admin_port:
            return "admin" not in self._keys.scopes and self._admin_is_local
        return not self._keys or (needed == "metrics" and on_admin_port)

    def _allowance(self, caller: Caller, what: str, of_all: str | None = None) -> int:
        """What the caller's key says, else what the limits of all say, there as ``of_all``."""
        own: int | None = getattr(caller.key, what, None)
        of_each: int = getattr(self.settings.limits, of_all or what)
        return of_each if own is None else own

    def _check_vision_tokens(self, caller: Caller, per_minute: int) -> None:
        if wait := self._vision_tokens.wait(caller.bucket, per_minute):
            raise _rate_limited("vision tokens", per_minute, wait)

    def _draining_error(self) -> Draining:
        return Draining(
            "the server finishes what it has and takes nothing new; send the request to another,"
            " or again later",
            retry_after=DRAIN_RETRY_SECONDS,
        )


class GateMiddleware:
    """Puts a gate in front of an application."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        gate = self._gate
        headers = _read(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16).encode()
            others = [item for item in scope["headers"] if item[0] != b"x-request-id"]
            scope["headers"] = [*others, (b"x-request-id", request_id)]
        context = RequestContext.of(scope)
        limits = gate.settings.limits
        exchange = context.exchange = Exchange(scope, receive, send, limits, request_id)
        path = route_path(scope)
        caller: Caller | None = None
        place: Place | None = None
        needed = needed_scope(path)
        try:
            caller = context.caller = gate.admit(
                scope,
                path,
                _credentials(headers),
                on_admin_port=context.on_admin_port,
            )
            if err := gate.health(path):
                raise err
            _check_length(headers.get(b"content-length"), limits.body_bytes)
            if needed == "generate":
                place = gate.let_in(caller, has_body=exchange.has_body)
        except (VTRError, HTTPException) as err:
            _count(err, caller, needed, path)
            await exchange.refuse(err)
            return
        if needed == "generate":
            media = begin_media(
                caller.name or "", limits.images, gate.pixels, limits.body_bytes, caller.bucket
            )
            try:
                await gate.pass_through(self._app, exchange, place)
            finally:
                media.close()
                if context.observer is not None:
                    context.observer.end(exchange.outcome)
                elif path in BUDGETED or exchange.failure is not None:
                    observe_outcome(exchange.outcome, key=caller.name or UNKNOWN)
        elif needed == "open":
            await exchange.run(self._app, None)
        else:
            await gate.pass_through(self._app, exchange, None)
        if isinstance(exchange.failure, VTRError):
            observe_refusal(exchange.failure)


def install(app: FastAPI, settings: ServerSettings) -> Gate:
    """Put a gate in front of ``app``; it is on ``app.state.vtr_gate`` too."""
    gate = Gate(settings)
    app.add_middleware(GateMiddleware, gate=gate)
    app.state.vtr_gate = gate
    return gate


def _credentials(headers: dict[bytes, bytes]) -> bytes | None:
    """The Authorization header, or what clients of Anthropic's API send in its place."""
    given = headers.get(b"authorization")
    key = headers.get(b"x-api-key")
    return b"Bearer " + key if given is None and key is not None else given


def _read(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """By name; of a repeated header the first counts, as in Starlette."""
    return dict(reversed(headers))


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _check_length(given: bytes | None, limit: int) -> None:
    """Refuse a body that says itself that it is too large; a wrong number is the server's to see."""
    if given is not None and given.isdigit() and int(given[:20]) > limit:
        raise body_too_large(int(given[:20]), limit)


def _rate_limited(what: str, per_minute: int, wait: float) -> RateLimited:
    seconds = math.ceil(wait)
    return RateLimited(
        f"the allowance of {per_minute} {what} per minute is used up; send it again in {seconds} s",
        retry_after=seconds,
    )


def _count(err: VTRError | HTTPException, caller: Caller | None, needed: str, path: str) -> None:
    """A refusal in the metrics; ``needed`` is ``generate`` if no route saw the request."""
    if isinstance(err, VTRError) and path not in _HEALTH:  # a probe of a server that drains
        observe_refusal(err)
    if needed == "generate":
        observe_outcome(outcome_of(err), key=(caller and caller.name) or UNKNOWN)
