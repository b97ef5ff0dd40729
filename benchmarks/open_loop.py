"""Requests that come when they come: a Poisson load on a running server, and what came of it."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.report import percentile
from benchmarks.serving import content

MODEL = "elastic"
QUESTION = "What is this?"
OUTPUT_TOKENS = 2
CELLS = 12
"""Coloured squares along an image's side: no two images are alike, and all compress well."""


@dataclass
class Answer:
    """What one request got."""

    ttft: float | None = None
    """Seconds to the first token; None if the client gave up before, or on an error."""
    spent: float | None = None
    """Mean share of the vision tokens that the layers saw, as the server reports it."""
    error: str | None = None


@dataclass
class Client:
    """Sends requests with one image each, never twice the same image."""

    url: str
    image_side: int
    patience: float
    """Seconds after which a client without a first token gives up."""
    images: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def body(self, budget: float | str) -> bytes:
        """Return the next request."""
        draw = np.random.default_rng(next(self.images))
        pixels = draw.integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)
        side = self.image_side, self.image_side
        image = Image.fromarray(pixels).resize(side, Image.Resampling.NEAREST)
        return json.dumps(
            {
                "model": MODEL,
                "max_tokens": OUTPUT_TOKENS,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
                "vtr": {"budget": budget},
                "messages": [{"role": "user", "content": content(image, QUESTION)}],
            }
        ).encode()

    async def open(
        self, budget: float | str, rate: float, seconds: float, seed: int
    ) -> list[tuple[float, Answer]]:
        """Return when each request was sent, in seconds from the start, and its answer.

        ``rate`` requests a second come at random (Poisson), without regard to the answers.
        """
        times = arrivals(rate, seconds, seed)
        bodies = [self.body(budget) for _ in times]
        async with self._connect() as http, asyncio.TaskGroup() as tasks:
            start = time.perf_counter()
            asked = []
            for moment, body in zip(times, bodies, strict=True):
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                asked.append(tasks.create_task(self._ask(http, body)))
        return [(moment, task.result()) for moment, task in zip(times, asked, strict=True)]

    async def closed(self, budget: float | str, concurrency: int, seconds: float) -> list[Answer]:
        """Return the answers to clients that each send the next request after an answer."""
        found: list[Answer] = []
        end = time.perf_counter() + seconds

        async def one(http: httpx.AsyncClient) -> None:
            while time.perf_counter() < end:
                found.append(await self._ask(http, self.body(budget)))

        async with self._connect() as http:
            await asyncio.gather(*(one(http) for _ in range(concurrency)))
        return found

    async def in_turn(self, budget: float | str, requests: int) -> list[Answer]:
        """Return the answers to requests that have the server to themselves."""
        async with self._connect() as http:
            return [await self._ask(http, self.body(budget)) for _ in range(requests)]

    async def idle(self) -> None:
        """Return once the engine has nothing to do."""
        async with self._connect() as http:
            while True:
                text = (await http.get("/metrics")).text
                counts = [
                    float(line.split()[-1])
                    for line in text.splitlines()
                    if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
                ]
                if counts and not any(counts):
                    return
                await asyncio.sleep(0.5)

    def _connect(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits, trust_env=False)

    async def _ask(self, http: httpx.AsyncClient, body: bytes) -> Answer:
        answer = Answer()
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.patience) as patience:
                async for chunk in events(http, body):
                    if "error" in chunk:
                        answer.error = json.dumps(chunk["error"])
                        continue
                    if answer.ttft is None:
                        answer.ttft = time.perf_counter() - start
                        patience.reschedule(None)
                    if "vtr" in chunk:
                        answer.spent = chunk["vtr"]["mean_keep"]
        except TimeoutError:
            pass  # it gave up: no first token
        except httpx.HTTPError as err:
            answer.error = repr(err)
        return answer


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times of a Poisson process, the same for the same seed."""
    draw = random.Random(seed)
    times, moment = [], draw.expovariate(rate)
    while moment < seconds:
        times.append(moment)
        moment += draw.expovariate(rate)
    return times


async def events(http: httpx.AsyncClient, body: bytes) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed answer; raises HTTPStatusError with the server's words."""
    headers = {"Content-Type": "application/json"}
    async with http.stream("POST", "/v1/chat/completions", content=body, headers=headers) as got:
        if got.status_code != httpx.codes.OK:
            said = (await got.aread()).decode(errors="replace")
            raise httpx.HTTPStatusError(said, request=got.request, response=got)
        async for line in got.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def summary(
    answers: list[Answer], seconds: float, objective: float, patience: float
) -> dict[str, Any]:
    """Return what a load of ``seconds`` came to.

    Requests that failed or gave up count in the percentiles with the patience: they waited at
    least as long. Goodput is first tokens within the objective, a second. Where no request came,
    percentiles and the share in time are None.
    """
    whole = [answer for answer in answers if answer.ttft is not None and not answer.error]
    waits = sorted(
        patience if answer.ttft is None or answer.error else answer.ttft for answer in answers
    )
    spent = [answer.spent for answer in whole if answer.spent is not None]
    return {
        "requests": len(answers),
        "ttft_p50_s": percentile(waits, 0.5) if waits else None,
        "ttft_p95_s": percentile(waits, 0.95) if waits else None,
        "goodput_rps": sum(each <= objective for each in waits) / seconds,
        "in_time": statistics.fmean(each <= objective for each in waits) if waits else None,
        "mean_budget": statistics.fmean(spent) if spent else None,
        "gave_up": sum(answer.ttft is None and not answer.error for answer in answers),
        "errors": sum(answer.error is not None for answer in answers),
        "first_error": next((answer.error for answer in answers if answer.error), None),
    }
