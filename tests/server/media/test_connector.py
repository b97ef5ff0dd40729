"""Images that do not load or may not be loaded, through vLLM's own registry of connectors."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from tests.server.pictures import image, png_of_size, serve
from vtr_server.media.connector import install_media_connector
from vtr_server.media.limits import expect_media
from vtr_server.policy.settings import MediaSettings
from vtr_vllm.errors import InvalidMedia, TooManyImages, VTRError


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def connector(most_pixels: int = 4096, **media: Any) -> Any:
    install_media_connector(MediaSettings(**media), most_pixels)
    return MEDIA_CONNECTOR_REGISTRY.load("http")


@pytest.mark.parametrize(
    "url",
    ["data:image/png,raw", "data:image/png;base64,@@", "file:///etc/hosts", "ftp://h/x", "nothing"],
)
def test_an_image_that_does_not_load_is_the_clients_fault(url: str) -> None:
    ours = connector()
    for load in (
        lambda: ours.fetch_image(url),
        lambda: asyncio.run(ours.fetch_image_async(url)),
    ):
        with pytest.raises(InvalidMedia):
            load()


def test_an_image_within_the_limit_loads() -> None:
    loaded = connector().fetch_image(data_url(image("PNG", (64, 64))))
    assert loaded.media.size == (64, 64)


def test_an_image_beyond_the_limit_is_refused_by_its_header() -> None:
    with pytest.raises(InvalidMedia, match=r"9000 x 9000 = 81000000 pixels; at most 4096"):
        connector().fetch_image(data_url(png_of_size(9000, 9000)))


def test_images_are_counted_per_request() -> None:
    ours = connector()
    url = data_url(image("PNG", (8, 8)))

    async def request(n: int) -> list[Any]:
        expect_media(2)
        return await asyncio.gather(*(ours.fetch_image_async(url) for _ in range(n)))

    assert len(asyncio.run(request(2))) == 2
    with pytest.raises(TooManyImages, match="more than 2 images"):
        asyncio.run(request(3))
    assert len(asyncio.run(request(2))) == 2


def test_an_image_is_fetched_where_that_is_allowed() -> None:
    async def fetch(**media: Any) -> Any:
        async with serve(image("PNG", (16, 8))) as address:
            return await connector(**media).fetch_image_async(f"{address}/image")

    assert asyncio.run(fetch(private_addresses=True)).media.size == (16, 8)
    with pytest.raises(InvalidMedia, match="not of the public internet"):
        asyncio.run(fetch())
    with pytest.raises(InvalidMedia, match="none of those"):
        asyncio.run(fetch(private_addresses=True, domains=("images.example",)))


def test_a_fetched_image_is_measured_before_it_is_decoded() -> None:
    async def fetch() -> None:
        async with serve(png_of_size(60000, 60000)) as address:
            await connector(private_addresses=True).fetch_image_async(f"{address}/image")

    with pytest.raises(InvalidMedia, match="pixels"):
        asyncio.run(fetch())


def test_nothing_is_fetched_synchronously() -> None:
    with pytest.raises(VTRError, match="asynchronously"):
        connector(private_addresses=True).fetch_image("http://127.0.0.1:1/image")
