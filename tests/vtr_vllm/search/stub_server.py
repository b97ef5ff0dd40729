"""Servers that fail on purpose, which a real one cannot be told to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vtr_vllm.schedules import ModelGeometry, RankRule, make_plan

GEOMETRY = ModelGeometry(4, 64, 128, 4, 2, 16)


@dataclass(frozen=True)
class Reply:
    """What a stub answers; status 0 closes the connection instead."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(status: int, message: str, code: str | int | None = None, **headers: str) -> Reply:
    """An error in OpenAI's form; ``_`` in a header's name stands for ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": {"message": message, "code": code or status}}, named)


VISION_TOKENS = 3


def completion(text: str, body: Mapping[str, Any] | None = None) -> Reply:
    """An answer as a VTR server gives it: ``text`` as one token, three vision and two others.

    With the request's ``body`` it ran as asked, else unreduced.
    """
    asked = {} if body is None else body["vtr"]
    keep = asked.get("keep", [1.0] * GEOMETRY.layers)
    rules = [RankRule.parse(rule) for rule in asked.get("rules", [])]
    facts = {
        "vision_tokens": VISION_TOKENS,
        "kept_per_layer": list(make_plan(keep, rules, VISION_TOKENS).counts),
    }
    step = {"token": text, "logprob": -0.5, "top_logprobs": [{"token": text, "logprob": -0.5}]}
    choice = {"message": {"content": text}, "logprobs": {"content": [step]}}
    usage = {"prompt_tokens": 5}
    return Reply(body={"choices": [choice], "usage": usage, "vtr": facts})


def question(body: Mapping[str, Any]) -> str:
    """The text of a chat request."""
    return str(body["messages"][0]["content"][-1]["text"])


@dataclass
class Stub:
    """A server whose completions a test decides; every field may change while it runs."""

    url: str
    chat: Callable[[Any], Reply]
    """From a request's body to the answer; called in a thread of its own."""
    model: str = "stub"
    geometry: ModelGeometry = GEOMETRY
    alive: bool = True
    """If not, connections are closed without an answer."""
    band_starts: list[int] | None = None
    """Of the KV bands, where it says so."""
    checkpoint: str | None = None
    missing: tuple[str, ...] = ()
    """Paths that are not served."""
    answered: int = 0
    """Completions sent, of whatever status."""
    authorizations: set[str | None] = field(default_factory=set)

    def get(self, path: str) -> Reply:
        """Any other route."""
        if path in self.missing:
            return refusal(404, "Not Found")
        bodies = {
            "/health": None,
            "/version": {"version": "0.32.0"},
            "/v1/models": {"data": [{"id": self.model}]},
            "/v1/schedules": {
                "geometry": self.geometry.to_dict(),
                **({"band_starts": self.band_starts} if self.band_starts else {}),
                **({"checkpoint": self.checkpoint} if self.checkpoint else {}),
            },
        }
        return Reply(body=bodies[path])


@contextmanager
def stub_server(chat: Callable[[Any], Reply]) -> Iterator[Stub]:
    """A stub on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            stub.authorizations.add(self.headers.get("Authorization"))
            self._send(stub.get(self.path))

        def do_POST(self) -> None:
            stub.authorizations.add(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if stub.alive:
                reply = stub.chat(body)
                stub.answered += 1
                self._send(reply)
            else:
                self.close_connection = True

        def _send(self, reply: Reply) -> None:
            if not stub.alive or reply.status == 0:
                self.close_connection = True
                return
            content = b"" if reply.body is None else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        request_queue_size = 64
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that gave up has closed the connection."""

    server = Quiet(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_address[1]}", chat)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
