"""Pixels are given out in order, never more than there are, and always come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_server.media import pixel_budget
from vtr_server.media.pixel_budget import PixelBudget
from vtr_vllm.errors import InvalidMedia, Overloaded


def budget(most: int) -> tuple[PixelBudget, list[int]]:
    seen: list[int] = []
    return PixelBudget(most, seen.append), seen


async def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begun, and as far as it comes by itself."""
    task = asyncio.create_task(work)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_what_fits_is_taken_at_once() -> None:
    pixels, seen = budget(100)
    asyncio.run(pixels.take(60))
    asyncio.run(pixels.take(40))
    assert pixels.held == 100
    pixels.give(60)
    assert pixels.held == 40
    assert seen == [60, 40, -60]


def test_what_never_fits_is_the_clients_fault() -> None:
    pixels, _ = budget(100)
    with pytest.raises(InvalidMedia, match="101 pixels together.*at most 100 at once"):
        asyncio.run(pixels.take(101))
    assert pixels.held == 0


def test_turns_come_in_order() -> None:
    """A small one does not pass a large one for ever."""

    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(60)
        large, small = await start(pixels.take(80)), await start(pixels.take(10))
        assert not large.done()
        assert not small.done()
        pixels.give(60)
        await asyncio.gather(large, small)
        assert pixels.held == 90

    asyncio.run(run())


def test_who_waits_too_long_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_budget, "WAIT_SECONDS", 0.01)

    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(60)
        with pytest.raises(Overloaded, match="80 pixels and waited") as caught:
            await pixels.take(80)
        assert caught.value.http_status == 429
        assert caught.value.retry_after >= 1
        assert pixels.held == 60
        await pixels.take(40)

    asyncio.run(run())


def test_a_client_that_leaves_lets_those_behind_it_in() -> None:
    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(60)
        large, small = await start(pixels.take(80)), await start(pixels.take(30))
        large.cancel()
        await small
        with pytest.raises(asyncio.CancelledError):
            await large
        assert pixels.held == 90

    asyncio.run(run())


def test_a_turn_that_comes_too_late_is_given_back() -> None:
    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(100)
        waits = await start(pixels.take(50))
        pixels.give(100)  # its turn
        waits.cancel()  # before it runs again
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert pixels.held == 0

    asyncio.run(run())


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.integers(0, 3)), max_size=30))
def test_nothing_is_lost(clients: list[tuple[int, bool, int]]) -> None:
    async def one(pixels: PixelBudget, size: int, turns: int) -> None:
        await pixels.take(size)
        try:
            assert 0 <= pixels.held <= 100
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            pixels.give(size)

    async def run() -> None:
        pixels, seen = budget(100)
        tasks = [asyncio.create_task(one(pixels, size, turns)) for size, _, turns in clients]
        await asyncio.sleep(0)
        for task, (_, leaves, _) in zip(tasks, clients, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pixels.held == sum(seen) == 0

    asyncio.run(run())
