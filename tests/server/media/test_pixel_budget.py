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
from vtr_vllm.errors import CallerBusy, InvalidMedia, Overloaded


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
    asyncio.run(pixels.take(60, "a"))
    asyncio.run(pixels.take(40, "b"))
    assert pixels.held == 100
    pixels.give(60, "a")
    assert pixels.held == 40
    assert seen == [60, 40, -60]


def test_what_never_fits_is_the_clients_fault() -> None:
    pixels, _ = budget(100)
    with pytest.raises(InvalidMedia, match="101 pixels together.*at most 100 at once"):
        asyncio.run(pixels.take(101, "a"))
    assert pixels.held == 0


def test_turns_come_in_order() -> None:
    """A small one does not pass a large one for ever."""

    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(60, "a")
        large, small = await start(pixels.take(80, "b")), await start(pixels.take(10, "c"))
        assert not large.done()
        assert not small.done()
        pixels.give(60, "a")
        await asyncio.gather(large, small)
        assert pixels.held == 90

    asyncio.run(run())


def test_who_waits_too_long_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_budget, "WAIT_SECONDS", 0.01)

    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(60, "a")
        with pytest.raises(Overloaded, match="80 pixels and waited") as caught:
            await pixels.take(80, "b")
        assert caught.value.http_status == 429
        assert caught.value.retry_after >= 1
        assert pixels.held == 60
        await pixels.take(40, "c")

    asyncio.run(run())


def test_a_client_that_leaves_lets_those_behind_it_in() -> None:
    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(60, "a")
        large, small = await start(pixels.take(80, "b")), await start(pixels.take(30, "c"))
        large.cancel()
        await small
        with pytest.raises(asyncio.CancelledError):
            await large
        assert pixels.held == 90

    asyncio.run(run())


def test_a_turn_that_comes_too_late_is_given_back() -> None:
    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(100, "a")
        waits = await start(pixels.take(50, "b"))
        pixels.give(100, "a")  # its turn
        waits.cancel()  # before it runs again
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert pixels.held == 0

    asyncio.run(run())


def test_a_caller_that_has_its_share_holds_up_nobody_else() -> None:
    async def run() -> None:
        pixels, _ = budget(100)
        for _ in range(2):
            await pixels.take(25, "a")
        more = [await start(pixels.take(25, "a")), await start(pixels.take(1, "a"))]
        await pixels.take(30, "b")
        assert not any(each.done() for each in more), "the other half is of others"
        pixels.give(25, "a")
        await more[0]
        assert not more[1].done()
        pixels.give(25, "a")
        await more[1]
        assert pixels.held == 25 + 1 + 30

    asyncio.run(run())


def test_who_waits_too_long_for_its_own_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has room: no operator is to be woken up."""
    monkeypatch.setattr(pixel_budget, "WAIT_SECONDS", 0.01)

    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(50, "a")
        with pytest.raises(CallerBusy, match="others of yours, which hold 50 of the 50 that one"):
            await pixels.take(10, "a")
        assert pixels.held == 50
        await pixels.take(50, "b")

    asyncio.run(run())


def test_one_prompt_may_take_more_than_a_share() -> None:
    async def run() -> None:
        pixels, _ = budget(100)
        await pixels.take(10, "a")
        large, other = await start(pixels.take(100, "a")), await start(pixels.take(20, "b"))
        assert (large.done(), other.done()) == (False, True)
        pixels.give(10, "a")
        later = await start(pixels.take(20, "b"))
        assert not later.done(), "its turn is behind the large one"
        pixels.give(20, "b")
        await large
        pixels.give(100, "a")
        await later

    asyncio.run(run())


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.integers(0, 3)), max_size=30))
def test_nothing_is_lost(clients: list[tuple[int, bool, int]]) -> None:
    async def one(pixels: PixelBudget, size: int, turns: int) -> None:
        caller = str(turns)
        await pixels.take(size, caller)
        try:
            assert 0 <= pixels.held <= 100
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            pixels.give(size, caller)

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
