"""The openai client, as users have it, with mixed budgets: in turn, at once, and streamed."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.server.bad_input import chat_body
from tests.server.conftest import NAME, Server

pytestmark = pytest.mark.engine

WAYS: tuple[tuple[dict[str, Any], float], ...] = (
    ({}, 1.0),
    ({"extra_body": {"vtr": {"budget": 0.25}}}, 0.25),
    ({"extra_body": {"vtr": {"tier": "balanced"}}}, 0.5),
    ({"extra_headers": {"X-VTR-Budget": "0.75"}}, 0.75),
    ({"model": f"{NAME}@economy"}, 0.25),
)
"""How it is asked, and the budget that it must run with."""
REQUESTS = 20


def body(number: int) -> dict[str, Any]:
    return chat_body(NAME) | WAYS[number % len(WAYS)][0]


def check(number: int, told: dict[str, Any]) -> None:
    budget = WAYS[number % len(WAYS)][1]
    assert told["budget"] == budget
    assert told["mean_keep"] == pytest.approx(budget, abs=0.02)
    assert told["vision_tokens"] > 0


def test_one_after_the_other(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0)
    with client:
        for number in range(REQUESTS):
            check(number, client.chat.completions.create(**body(number)).vtr)


def test_all_at_once_and_every_second_streamed(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> dict[str, Any]:
        if number % 2 == 0:
            return (await client.chat.completions.create(**body(number))).vtr
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(**body(number), stream=True)
        ]
        assert chunks[-1].choices[0].finish_reason
        return chunks[-1].vtr

    async def run() -> list[dict[str, Any]]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, number) for number in range(REQUESTS)))

    for number, told in enumerate(asyncio.run(run())):
        check(number, told)
