"""What a load came to: failures and clients that gave up count as the waits that they were."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from benchmarks.open_loop import Answer, Client, arrivals, summary


def test_those_without_a_first_token_count_as_late() -> None:
    answers = [Answer(0.1, 0.5)] * 7 + [Answer(), Answer(0.2, None, "broken"), Answer(2.0, 0.25)]
    found = summary(answers, seconds=5, objective=1.0, patience=10.0)
    assert found["goodput_rps"] == pytest.approx(7 / 5)
    assert found["in_time"] == pytest.approx(0.7)
    assert found["ttft_p50_s"] == 0.1
    assert found["ttft_p95_s"] == 10
    assert (found["gave_up"], found["errors"], found["first_error"]) == (1, 1, "broken")
    assert found["mean_budget"] == pytest.approx((7 * 0.5 + 0.25) / 8)


def test_a_load_without_a_request_has_no_percentiles() -> None:
    found = summary([], seconds=5, objective=1.0, patience=10.0)
    assert (found["requests"], found["goodput_rps"]) == (0, 0)
    assert found["ttft_p50_s"] is found["ttft_p95_s"] is found["in_time"] is None


def test_arrivals_come_at_their_rate_and_again_for_the_same_seed() -> None:
    times = arrivals(20, 500, seed=1)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert times == sorted(times) == arrivals(20, 500, seed=1)
    assert times != arrivals(20, 500, seed=2)
    assert times[-1] < 500


def test_no_two_requests_share_an_image() -> None:
    client = Client("http://localhost", 336, 10)
    bodies = [json.loads(client.body("auto")) for _ in range(20)]
    urls = {body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies}
    assert len(urls) == 20
    assert bodies[0]["vtr"] == {"budget": "auto"}


def test_a_proxy_of_the_environment_is_not_asked(loopback: str) -> None:
    asyncio.run(Client(loopback, 336, 10).idle())


@pytest.mark.parametrize(
    ("before", "has_first"), [("", False), ('data: {"choices": []}\n\n', True)]
)
def test_an_error_is_no_first_token(before: str, has_first: bool) -> None:
    text = before + 'data: {"error": {"code": "engine_dead"}}\n\ndata: [DONE]\n\n'
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=text))

    async def ask() -> Answer:
        async with httpx.AsyncClient(base_url="http://server", transport=transport) as http:
            return await Client("http://server", 336, 10)._ask(http, b"{}")

    answer = asyncio.run(ask())
    assert answer.error == '{"code": "engine_dead"}'
    assert (answer.ttft is not None) == has_first
