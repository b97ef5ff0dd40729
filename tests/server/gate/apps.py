"""A small application behind a real gate, and clients for it without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from vtr_server.gate.context import RequestContext
from vtr_server.gate.keys import hash_key
from vtr_server.gate.middleware import Gate, GateMiddleware
from vtr_server.policy.settings import KeySettings, ServerSettings

ALL_SCOPES = ("generate", "metrics", "admin", "jobs")


def key(name: str, secret: str, **more: Any) -> KeySettings:
    """A key of the settings whose text is ``secret``."""
    return KeySettings(name=name, sha256=hash_key(secret.encode()), **more)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """The application, its gate, and what its routes saw."""

    settings: ServerSettings = field(default_factory=ServerSettings)
    clock: Clock = field(default_factory=Clock)
    seen: list[Any] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.app = FastAPI()
        self.gate = Gate(self.settings, self.clock)
        self.app.add_middleware(GateMiddleware, gate=self.gate)
        for path in ("/health", "/live", "/ready", "/metrics", "/v1/models", "/v1/jobs"):
            self.app.add_api_route(path, self.answer, methods=["GET", "POST"])
        for path in ("/admin/settings", "/page/app.js", "/reset_prefix_cache"):
            self.app.add_api_route(path, self.answer, methods=["GET", "POST"])
        self.app.add_api_route("/v1/echo", self.echo, methods=["POST"])
        self.app.add_api_route("/v1/slow", self.slow, methods=["POST"])
        self.app.add_api_route("/v1/deaf", self.deaf, methods=["POST"])
        self.app.add_api_route("/v1/stream", self.stream, methods=["POST"])
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        self.app.add_api_websocket_route("/v1/realtime", self.talk)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    async def answer(self) -> JSONResponse:
        return JSONResponse({"fine": True})

    async def echo(self, raw_request: Request) -> JSONResponse:
        """What the routes of the server see of a request."""
        body = await raw_request.body()
        context = RequestContext.of(raw_request.scope)
        self.seen.append(context)
        return JSONResponse(
            {
                "bytes": len(body),
                "request_id": raw_request.headers["x-request-id"],
                "caller": context.caller.name,
            }
        )

    async def slow(self, raw_request: Request) -> JSONResponse:
        """Waits as vLLM's handlers do: in a task of its own."""
        return await self._slow(raw_request=raw_request)

    @with_cancellation
    async def _slow(self, raw_request: Request) -> JSONResponse:
        return await self._released()

    async def deaf(self) -> JSONResponse:
        """Does not listen whether its client is still there."""
        return await self._released()

    async def _released(self) -> JSONResponse:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.seen.append("aborted")
            raise
        return JSONResponse({"fine": True})

    async def stream(self) -> StreamingResponse:
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        try:
            yield "data: 1\n\n"
            await self.release.wait()
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.seen.append("aborted")
            raise

    async def chat(self, body: dict[str, int], raw_request: Request) -> JSONResponse:
        """A route that counts its requests, once it has read them."""
        status = body["status"]
        if body.get("watched"):
            RequestContext.of(raw_request.scope).observer = self
        return JSONResponse({"fine": True}, status)

    def end(self, outcome: str) -> None:
        """As an observer of a request."""
        self.seen.append(outcome)

    async def talk(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await self.release.wait()
