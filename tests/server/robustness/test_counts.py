"""Every count of ours against what was sent, on each route: once a request, once a prompt.

However many prompts, choices, beams and chunks a request has, and however it ends.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.running import wait_until
from tests.server.bad_input import CHAT, COMPLETION, chat_body, data_url, picture
from tests.server.conftest import NAME, Server
from tests.server.robustness.bodies import RESPONSES
from tests.server.robustness.watching import settled

pytestmark = pytest.mark.engine

VISION = 144  # vision tokens of one image of the demo model
LAYERS = 12
ONE_IMAGE = {"vtr_vision_tokens_total": VISION, "vtr_mean_keep_count": 1}
REDUCED = {"vtr": {"budget": 0.5}}


def response_body(**more: Any) -> dict[str, Any]:
    image = {"type": "input_image", "image_url": data_url(picture()), "detail": "auto"}
    content = [image, {"type": "input_text", "text": "Which letter is red?"}]
    body = {"model": NAME, "input": [{"role": "user", "content": content}]}
    return body | {"max_output_tokens": 4, "temperature": 0} | more


def text_body(**more: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": "ASSISTANT:", "max_tokens": 3} | more


TWO_PROMPTS = {"prompt": ["USER: one ASSISTANT:", "USER: two ASSISTANT:"]}
CHOICES = {"n": 3, "temperature": 0.8}
BEAMS = {"use_beam_search": True, "n": 2}
STREAM = {"stream": True}

ANSWERED: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "an answer": (CHAT, chat_body(NAME) | REDUCED, ONE_IMAGE),
    "three choices": (CHAT, chat_body(NAME) | REDUCED | CHOICES, ONE_IMAGE),
    "a stream": (CHAT, chat_body(NAME) | REDUCED | STREAM, ONE_IMAGE),
    "a stream of choices": (CHAT, chat_body(NAME) | REDUCED | CHOICES | STREAM, ONE_IMAGE),
    "a trace": (CHAT, chat_body(NAME) | {"vtr": {"budget": 0.5, "trace": True}}, ONE_IMAGE),
    "by its cost": (CHAT, chat_body(NAME) | {"vtr": {"max_flops_fraction": 0.6}}, ONE_IMAGE),
    "beams": (CHAT, chat_body(NAME) | BEAMS, ONE_IMAGE),
    "beams in a stream": (CHAT, chat_body(NAME) | BEAMS | STREAM, ONE_IMAGE),
    "a completion": (COMPLETION, text_body(), {}),
    "two prompts": (COMPLETION, text_body() | TWO_PROMPTS, {}),
    "two prompts of choices": (COMPLETION, text_body() | TWO_PROMPTS | CHOICES, {}),
    "two prompts in a stream": (COMPLETION, text_body() | TWO_PROMPTS | STREAM, {}),
    "beams of two prompts": (COMPLETION, text_body() | TWO_PROMPTS | BEAMS, {}),
    "a completion with an echo": (COMPLETION, text_body(echo=True, max_tokens=0), {}),
    "a response": (RESPONSES, response_body() | REDUCED, ONE_IMAGE),
    "a response in a stream": (RESPONSES, response_body() | REDUCED | STREAM, ONE_IMAGE),
}
"""Path, body, and what is counted of vision."""

REFUSED: dict[str, tuple[str, dict[str, Any] | bytes, str | None]] = {
    "a budget out of range": (CHAT, chat_body(NAME) | {"vtr": {"budget": 7}}, "invalid_budget"),
    "an unknown field of ours": (CHAT, chat_body(NAME) | {"vtr": {"x": 1}}, "invalid_request"),
    "in a stream": (RESPONSES, response_body(vtr={"tier": "no"}) | STREAM, "unknown_tier"),
    "at admission": (
        CHAT,
        chat_body(NAME) | REDUCED | {"prompt_logprobs": 1},
        "unsupported_request",
    ),
    "at admission of a stream": (
        COMPLETION,
        text_body(vtr={"schedule": "none"}) | STREAM,
        "unknown_schedule",
    ),
    "by vLLM": (CHAT, chat_body(NAME) | {"max_tokens": -1}, None),
    "an unknown model": (CHAT, chat_body("nobody"), None),
    "no JSON": (CHAT, b"{", None),
    "no object": (COMPLETION, b"[]", None),
}
"""Path, body, and the code of our error."""


class Counts:
    """What a server counted since this was made."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._before = self._now()

    def _now(self) -> Counter[str]:
        settled(self._client)
        found: Counter[str] = Counter()
        for family in parse_text(self._client.get("/metrics").text):
            for sample in family.samples:
                if not sample.name.startswith("vtr_") or sample.name.endswith("_created"):
                    continue
                found[sample.name] += sample.value  # type: ignore[assignment]
                for label in ("outcome", "reason", "state"):
                    if label in sample.labels:
                        found[f"{sample.name} {sample.labels[label]}"] += sample.value  # type: ignore[assignment]
        return found

    def grown(self, names: dict[str, float]) -> dict[str, float]:
        """Of these names alone."""
        after = self._now()
        return {name: after[name] - self._before[name] for name in names}


@pytest.fixture(scope="module", autouse=True)
def _seen_before(server: Server) -> None:
    """The image of every prompt here comes back: the server has had it, at the same place."""
    with server.client() as client:
        for path, body in ((CHAT, chat_body(NAME)), (RESPONSES, response_body())):
            assert client.post(path, json=body).status_code == 200


def wanted(outcome: str, vision: dict[str, float], **more: float) -> dict[str, float]:
    """All that one request may change; what is not given stays as it is."""
    names = ["vtr_requests_total", "vtr_key_requests_total"]
    none = dict.fromkeys(
        [
            *(f"{name} {end}" for name in names for end in ("ok", "client_error", "refused")),
            *(f"{name} {end}" for name in names for end in ("aborted", "error", "timeout")),
            *("vtr_refused_requests_total", "vtr_schedule_requests_total"),
            *("vtr_vision_tokens_total", "vtr_mean_keep_count", "vtr_request_seconds_count"),
            *("vtr_engine_first_token_seconds_count", "vtr_time_to_first_token_seconds_count"),
        ],
        0.0,
    )
    counted = {f"{name} {outcome}": 1.0 for name in names} | dict.fromkeys(names, 1.0)
    vision = vision | {
        "vtr_flops_fraction_count": vision.get("vtr_mean_keep_count", 0),
        "vtr_vision_token_layers_total": vision.get("vtr_vision_tokens_total", 0) * LAYERS,
        # every image here is the one that ``_seen_before`` sent
        "vtr_kind_vision_tokens_total seen": vision.get("vtr_vision_tokens_total", 0),
        "vtr_kind_vision_tokens_total returning": vision.get("vtr_vision_tokens_total", 0),
    }
    return none | counted | vision | more


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_answered_counts_once(server: Server, name: str) -> None:
    path, body, vision = ANSWERED[name]
    streamed = bool(body.get("stream"))
    with server.client() as client:
        counts = Counts(client)
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        expected = wanted(
            "ok",
            vision,
            vtr_schedule_requests_total=1,
            vtr_request_seconds_count=1,
            vtr_engine_first_token_seconds_count=1,
            vtr_time_to_first_token_seconds_count=float(streamed),
        )
        assert counts.grown(expected) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_counts_once(server: Server, name: str) -> None:
    path, body, code = REFUSED[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with server.client() as client:
        counts = Counts(client)
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text
        ours = {f"vtr_refused_requests_total {code}": 1.0} if code else {}
        expected = wanted("client_error", {}, vtr_refused_requests_total=float(bool(code)), **ours)
        assert counts.grown(expected) == expected


def leave(server: Server, body: dict[str, Any], until: Callable[[socket.socket], None]) -> None:
    """Send a request, wait, and reset the connection."""
    place = urlsplit(server.url)
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((place.hostname, place.port)) as sock:
        sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("streamed", [False, True], ids=["in one piece", "in a stream"])
def test_what_was_begun_for_a_client_that_left_counts_too(server: Server, streamed: bool) -> None:
    """Its vision tokens were worked on, and its key was charged for them."""
    body = chat_body(NAME) | REDUCED | {"max_tokens": 400, "ignore_eos": True, "stream": streamed}

    with server.client() as client:
        counts = Counts(client)

        def until_it_generates(sock: socket.socket) -> None:
            def running() -> bool:
                lines = client.get("/metrics").text.splitlines()
                found = [line for line in lines if line.startswith("vllm:num_requests_running")]
                return any(float(line.split()[-1]) for line in found)

            wait_until(running)

        def until_it_streams(sock: socket.socket) -> None:
            while b"data: " not in sock.recv(65536):
                pass

        leave(server, body, until_it_streams if streamed else until_it_generates)
        expected = wanted(
            "aborted",
            ONE_IMAGE,
            vtr_schedule_requests_total=1,
            vtr_time_to_first_token_seconds_count=float(streamed),
        )
        if not streamed:  # whether it had its first token by then is chance
            del expected["vtr_engine_first_token_seconds_count"]
        else:
            expected["vtr_engine_first_token_seconds_count"] = 1
        assert counts.grown(expected) == expected


OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def test_a_scrape_is_valid_in_both_forms(server: Server) -> None:
    """As Prometheus asks for it, and as a browser does; the same families in both."""
    with server.client() as client:
        client.post(CHAT, json=chat_body(NAME) | REDUCED)
        text = client.get("/metrics", follow_redirects=True)
        found = client.get("/metrics", headers={"Accept": OPEN_METRICS}, follow_redirects=True)
    assert text.headers["content-type"].startswith("text/plain")
    assert found.headers["content-type"].startswith("application/openmetrics-text")
    assert found.text.endswith("# EOF\n")
    families = {family.name: family for family in parse_open(found.text)}
    assert "vllm:num_requests_running" in families, "the names of vLLM's are the same in both"
    assert "vllm:generation_tokens_total{" in found.text
    ours = {name for name in families if name.startswith("vtr_")}
    plain = {family.name for family in parse_text(text.text) if family.name.startswith("vtr_")}
    assert {name.removesuffix("_created") for name in plain} == ours
    for name in ours:
        family = families[name]
        assert family.documentation
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {
                f"{name}_total",
                f"{name}_created",
            }
