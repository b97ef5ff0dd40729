"""The verdicts of a soak: each can fail, and none holds of what nothing is known."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks import soak
from benchmarks.soak import Case, Seen, client, flat, verdicts

STEADY = [(5.0 * n, 100) for n in range(12)]


def seen(**changed: Any) -> Seen:
    found: dict[str, Any] = {
        "outcomes": Counter(ok=10, left=2, refused=3),
        "vision_tokens": 1440,
        "memory": STEADY,
    }
    return Seen(**(found | changed))


def series(**changed: float) -> dict[str, float]:
    found = {
        'vtr_requests_total{outcome="ok"}': 11.0,
        'vtr_requests_total{outcome="refused"}': 2.0,
        'vtr_requests_total{outcome="client_error"}': 1.0,
        "vtr_vision_tokens_total": 1500.0,
        'vtr_kv_blocks{state="total"}': 64.0,
        'vtr_kv_blocks{state="free"}': 64.0,
    }
    return found | changed


def failing(seen: Seen, after: dict[str, float]) -> set[str]:
    return {name for name, (holds, _) in verdicts(seen, {}, after).items() if not holds}


def test_a_good_run_passes() -> None:
    assert failing(seen(), series()) == set()


def test_a_server_that_reports_nothing_passes_in_nothing_that_it_must_report() -> None:
    assert failing(seen(), {}) == {
        "KV blocks are free",
        "ok as the clients counted",
        "refused as the clients counted",
        "all are counted",
        "vision tokens as counted",
        "no error",
    }


@pytest.mark.parametrize(
    ("changed", "criterion"),
    [
        ({'vtr_kv_blocks{state="held"}': 1}, "KV blocks are free"),
        ({'vtr_kv_blocks{state="free"}': 63}, "KV blocks are free"),
        ({'vtr_requests_total{outcome="error"}': 1}, "no error"),
        ({'vtr_requests_total{outcome="timeout"}': 1}, "no error"),
        ({"vtr_vision_tokens_total": 1439}, "vision tokens as counted"),
    ],
)
def test_what_the_server_reports_can_fail(changed: dict[str, float], criterion: str) -> None:
    assert criterion in failing(seen(), series(**changed))


def test_a_run_without_a_whole_answer_does_not_pass() -> None:
    nothing = seen(outcomes=Counter(), vision_tokens=0)
    assert {"ok as the clients counted", "vision tokens as counted"} <= failing(nothing, series())


@pytest.mark.parametrize("memory", [[], STEADY[:1], STEADY[:2]])
def test_a_run_too_short_for_memory_says_so(memory: list[tuple[float, int]]) -> None:
    holds, text = flat(memory)
    assert not holds
    assert "too short" in text


def test_memory_that_grows_is_not_flat() -> None:
    assert flat(STEADY)[0]
    assert not flat([(at, 100 + n) for n, (at, _) in enumerate(STEADY)])[0]


def run(answer: Callable[[httpx.Request], httpx.Response], monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What a client sees of a server in nine rounds, all of whose requests are refused ones."""
    clock = itertools.count(1.0)
    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(soak, "ASKS_BADLY", 1.0)
    monkeypatch.setattr(soak, "REST_SECONDS", 0.0)
    found = Seen()

    async def ask() -> None:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://server", transport=transport) as http:
            await client(http, [Case({}, "", ())], found, 10.0, 0)

    asyncio.run(ask())
    return found


@pytest.mark.parametrize("status", [200, 500])
def test_what_must_be_refused_and_is_not_is_wrong(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(lambda _: httpx.Response(status), monkeypatch)
    assert found.wrong == [f"status {status} for what must be refused"] * 9
    assert found.outcomes == {"wrong status": 9}


def test_a_request_without_an_answer_is_wrong_and_the_next_one_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone", request=request)

    found = run(gone, monkeypatch)
    assert len(found.wrong) == found.outcomes["no answer"] == 9
    assert all("gone" in wrong for wrong in found.wrong)
