"""What is seen of a server from outside: its answers, its own counts, its processes' memory."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from tests.server.bad_input import CHAT, COMPLETION, data_url
from tests.server.conftest import NAME, Server
from tests.server.robustness.bodies import RESPONSES
from vtr_vllm import demo

CLEAR = 0.01
"""Log-probability between the best and the next token, below which rounding may decide."""
SETTLE_SECONDS = 120

Series = dict[str, float]


def counts(client: httpx.Client) -> Series:
    """The server's own counts, by series."""
    text = client.get("/metrics").text
    found = re.findall(r"^((?:vtr_|vllm:num_requests)\w+(?:{[^}]*})?) (\S+)$", text, re.M)
    return {name: float(value) for name, value in found}


def total(series: Series, name: str, label: str = "") -> float:
    """The sum of a metric's series that carry a label."""
    return sum(v for k, v in series.items() if k.split("{")[0] == name and label in k)


def outcomes(series: Series) -> Counter[str]:
    """How many requests ended how."""
    found: Counter[str] = Counter()
    for name, value in series.items():
        if match := re.match(r'vtr_requests_total{.*outcome="(\w+)"', name):
            found[match[1]] += int(value)
    return found


def settled(client: httpx.Client) -> Series:
    """The counts once nothing is inside and no KV block is held; fails if that never comes."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        found = counts(client)
        blocks = {s: total(found, "vtr_kv_blocks", f'"{s}"') for s in ("held", "free", "total")}
        inside = {
            name: total(found, name)
            for name in (
                "vtr_in_flight_requests",
                "vllm:num_requests_running",
                "vllm:num_requests_waiting",
            )
        }
        if not any(inside.values()) and blocks["held"] == 0 and blocks["free"] == blocks["total"]:
            return found
        assert time.monotonic() < end, f"left behind: {inside}, {blocks}"
        time.sleep(0.1)


def memory(server: Server) -> int:
    """Bytes that the server's processes have for themselves."""
    parent = psutil.Process(server.pid)
    return sum(p.memory_full_info().uss for p in [parent, *parent.children(recursive=True)])


def told(answer: httpx.Response) -> tuple[str, Any]:
    """Text and facts of an answer of any route, streamed or not; fails on an error."""
    assert answer.status_code == 200, answer.text[:300]
    if answer.headers["content-type"].startswith("text/event-stream"):
        return _told_by_events(answer.text)
    body = answer.json()
    if "output" in body:
        return body["output"][0]["content"][0]["text"], body["vtr"]["kept_per_layer"]
    choice = body["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return text, body["vtr"]["kept_per_layer"]


def _told_by_events(stream: str) -> tuple[str, Any]:
    text, kept = "", None
    for line in stream.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        assert "error" not in event, event
        assert event.get("type") != "error", event
        for choice in event.get("choices", ()):
            text += choice["delta"].get("content") or ""
        kept = event["vtr"]["kept_per_layer"] if "vtr" in event else kept
    return text, kept


@dataclass(frozen=True)
class Question:
    """A valid request and the answer that it got alone."""

    path: str
    body: dict[str, Any]
    answer: tuple[str, Any]


@cache  # a fixture's server lives as long as its tests, and says the same to the same question
def _questions(server: Server) -> list[Question]:
    """Valid requests of all routes and several budgets, alone; unclear answers are left out."""
    asks = ({"budget": 1.0}, {"budget": 0.5}, {"tier": "economy"}, {"schedule": "fastv-0.5"})
    found = []
    with server.client() as client:
        for index in range(6):
            drawn = demo.sample("test", index)
            url = data_url(_png(drawn.image))
            for number, ask in enumerate(asks):
                stream = (index + number) % 3 == 0
                body = _chat(url, drawn.question) | {"vtr": ask}
                if not _is_clear(client.post(CHAT, json=body | _LOGPROBS).json()):
                    continue
                body |= {"stream": True} if stream else {}
                found.append(Question(CHAT, body, told(client.post(CHAT, json=body))))
        for path, body in (
            (COMPLETION, {"prompt": "what color is the B?", "max_tokens": 4}),
            (RESPONSES, {"input": "what color is the B?", "max_output_tokens": 4}),
        ):
            body = {"model": NAME, "temperature": 0, **body}
            found.append(Question(path, body, told(client.post(path, json=body))))
    assert len(found) >= 8, "too few questions have a clear answer"
    return found


_LOGPROBS = {"logprobs": True, "top_logprobs": 2}


def _png(picture: Any) -> bytes:
    from io import BytesIO

    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _chat(url: str, question: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [image, {"type": "text", "text": question}]
    message = {"role": "user", "content": content}
    return {"model": NAME, "messages": [message], "max_tokens": 4, "temperature": 0}


def _is_clear(answer: Any) -> bool:
    tokens = answer["choices"][0]["logprobs"]["content"]
    tops = [[each["logprob"] for each in token["top_logprobs"]] for token in tokens]
    return all(first - second >= CLEAR for first, second in tops)


@dataclass
class Neighbour:
    """Asks what it asked alone again and again while a test does something else.

    Inside of the block it runs; the block ends with an error if an answer was not the one it got
    alone, or if it was never answered.
    """

    server: Server
    answered: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._questions = _questions(self.server)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            assert self.wrong == []
            assert self.answered > 0

    def _ask(self) -> None:
        with self.server.client() as client:
            while not self._stop.is_set():
                for question in self._questions:
                    self._check(client, question)
                    if self._stop.is_set() and self.answered:
                        return

    def _check(self, client: httpx.Client, question: Question) -> None:
        try:
            found = told(client.post(question.path, json=question.body))
        except (AssertionError, httpx.HTTPError) as err:
            self.wrong.append(f"{question.path} {question.body.get('vtr')}: {err!r}")
            return
        self.answered += 1
        if found != question.answer:
            self.wrong.append(f"{question.body.get('vtr')}: {found}, alone {question.answer}")
