"""A request holds the pixels of all its images, or of none."""

from __future__ import annotations

import asyncio

import pytest

from vtr_server.media.pixel_budget import PixelBudget
from vtr_server.media.request_media import (
    RequestMedia,
    begin_media,
    current_client,
    load_medium,
    release_pixels,
)
from vtr_vllm.errors import InvalidMedia, TooManyImages


def budget(most: int = 100) -> PixelBudget:
    return PixelBudget(most, lambda _: None)


async def load(request: RequestMedia, sizes: list[int]) -> list[object]:
    """All images of a prompt, begun together as vLLM does; some headers take longer to come."""

    async def one(size: int) -> int:
        loading = request.load()
        for _ in range(size % 7):
            await asyncio.sleep(0)
        if size < 0:
            err = InvalidMedia("broken")
            loading.fail(err)
            raise err
        await loading.ready(size)
        return size

    return list(await asyncio.gather(*map(one, sizes), return_exceptions=True))


def test_two_requests_never_wait_for_each_others_halves() -> None:
    async def run() -> None:
        pixels = budget()
        done = []

        async def request(sizes: list[int]) -> None:
            media = RequestMedia("", 16, pixels)
            assert await load(media, sizes) == sizes
            assert pixels.held <= 100
            await asyncio.sleep(0)
            media.close()
            done.append(sizes)

        wanted = [[30, 31, 32], [33, 34], [5, 90], [95], [50, 50]]
        await asyncio.wait_for(asyncio.gather(*map(request, wanted)), 60)
        assert sorted(done) == sorted(wanted)
        assert pixels.held == 0

    asyncio.run(run())


def test_one_bad_image_stops_the_others_before_they_are_decoded() -> None:
    pixels = budget()
    media = RequestMedia("", 16, pixels)
    results = asyncio.run(load(media, [20, -1, 33]))
    assert all(isinstance(result, InvalidMedia) for result in results)
    assert pixels.held == 0


def test_images_that_never_fit_are_refused_together() -> None:
    media = RequestMedia("", 16, budget())
    results = asyncio.run(load(media, [60, 41]))
    assert all(isinstance(result, InvalidMedia) for result in results)


def test_more_images_than_allowed_are_refused() -> None:
    pixels = budget()
    media = RequestMedia("", 2, pixels)
    assert asyncio.run(load(media, [1, 2])) == [1, 2]
    with pytest.raises(TooManyImages, match="more than 2 images"):
        media.load()
    results = asyncio.run(load(RequestMedia("", 2, pixels), [1, 2, 3]))
    assert all(isinstance(result, TooManyImages) for result in results)
    assert pixels.held == 3


def test_a_prompt_after_the_other() -> None:
    """Of several prompts each holds its own images while they are processed."""
    pixels = budget()
    media = RequestMedia("", 16, pixels)
    for _ in range(5):
        assert asyncio.run(load(media, [40, 50])) == [40, 50]
        media.release(90)
    assert pixels.held == 0
    media.release(90)
    media.close()
    assert pixels.held == 0


def test_what_comes_after_the_end_is_given_back() -> None:
    pixels = budget()
    media = RequestMedia("", 16, pixels)
    asyncio.run(load(media, [40]))
    media.close()
    asyncio.run(load(media, [40]))
    assert pixels.held == 0


def test_it_goes_with_the_context_of_a_request() -> None:
    async def request(name: str, pixels: PixelBudget) -> str:
        media = begin_media(name, 1, pixels)
        await load_medium().ready(10)
        release_pixels(4)
        assert media is not None
        return current_client()

    async def run() -> list[str]:
        pixels = budget()
        names = await asyncio.gather(*(request(name, pixels) for name in ("ann", "ben")))
        assert pixels.held == 12
        return names

    assert asyncio.run(run()) == ["ann", "ben"]


def test_outside_of_a_request_nothing_is_counted() -> None:
    async def run() -> None:
        for _ in range(100):
            await load_medium().ready(10**9)
        load_medium().fail(InvalidMedia("broken"))
        release_pixels(5)

    asyncio.run(run())
    assert current_client() == ""
