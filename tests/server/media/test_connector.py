"""Images that do not load or may not be loaded, through vLLM's own registry of connectors."""

from __future__ import annotations

import asyncio
import base64
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from tests.server.pictures import image, png_of_size, serve
from vtr_server.media.connector import install_media_connector
from vtr_server.media.pixel_budget import PixelBudget
from vtr_server.media.readers import DecodedMedium
from vtr_server.media.request_media import begin_media, release_pixels
from vtr_server.policy.settings import LimitSettings, MediaSettings
from vtr_vllm.errors import InvalidMedia, TooManyImages, VTRError


def data_url(*data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64," + ",".join(base64.b64encode(part).decode() for part in data)


VLLMS: dict[str, Any] = {}
"""What vLLM's own flags give to every connector."""


def budget(most: int = 10**6) -> PixelBudget:
    return PixelBudget(most, lambda _: None)


def connector(most_pixels: int = 4096, most_bytes: int = 10**6, **media: Any) -> Any:
    limits = LimitSettings(image_pixels=most_pixels, body_bytes=most_bytes)
    install_media_connector(MediaSettings(**media), limits)
    return MEDIA_CONNECTOR_REGISTRY.load("http", **VLLMS)


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
        begin_media("", 2, budget())
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


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("image", "100064 bytes or more; at most 5000 are"),
        ("stream", "bytes or more; at most 5000 are"),
        ("gzip", "Content-Encoding 'gzip'"),
    ],
)
def test_no_more_is_fetched_than_could_have_been_sent(way: str, why: str) -> None:
    data = image("PNG", (16, 8)).ljust(100_064, b"\0")

    async def fetch() -> None:
        async with serve(data) as address:
            ours = connector(private_addresses=True, most_bytes=5000)
            await ours.fetch_image_async(f"{address}/{way}")

    with pytest.raises(InvalidMedia, match=why):
        asyncio.run(fetch())


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_an_address_that_refuses_is_the_clients_fault(status: int) -> None:
    async def fetch() -> None:
        async with serve(b"") as address:
            await connector(private_addresses=True).fetch_image_async(f"{address}/status?{status}")

    with pytest.raises(InvalidMedia, match=rf"/status\?{status}' cannot be loaded .*HTTP {status}"):
        asyncio.run(fetch())


def test_what_a_host_sends_is_not_inflated() -> None:
    """A gigabyte of zeros is a megabyte of gzip: the small file is refused for its encoding alone."""

    async def fetch() -> None:
        async with serve(image("PNG", (16, 8))) as address:
            await connector(private_addresses=True).fetch_image_async(f"{address}/gzip")

    with pytest.raises(InvalidMedia, match="identity"):
        asyncio.run(fetch())


@pytest.mark.parametrize("way", ["image", "stream"])
def test_the_files_of_a_request_are_bounded_together(way: str) -> None:
    data = image("PNG", (16, 8)).ljust(4000, b"\0")

    async def fetch(n: int) -> list[Any]:
        async with serve(data) as address:
            ours = connector(private_addresses=True, most_bytes=9000)
            begin_media("", 16, budget(), 9000)
            return await asyncio.gather(
                *(ours.fetch_image_async(f"{address}/{way}") for _ in range(n))
            )

    assert len(asyncio.run(fetch(2))) == 2
    with pytest.raises(InvalidMedia, match="at most 9000 are fetched for one request"):
        asyncio.run(fetch(3))


def test_hosts_that_never_answer_hold_up_their_own_caller_alone() -> None:
    async def fetch(caller: str, url: str, ours: Any) -> Any:
        begin_media("", 500, budget(), caller=caller)
        return await ours.fetch_image_async(url)

    async def run() -> None:
        async with serve(image("PNG", (16, 8))) as address:
            ours = connector(private_addresses=True)
            fetches = ours.connection._fetches
            traps = [
                asyncio.create_task(fetch("ann", f"{address}/tarpit", ours)) for _ in range(150)
            ]
            async with asyncio.timeout(60):  # all that one caller may have, they have
                while "ann" not in fetches or not fetches["ann"].locked():
                    await asyncio.sleep(0.001)
            loaded = await asyncio.wait_for(fetch("ben", f"{address}/image", ours), 60)
            assert loaded.media.size == (16, 8)
            own = asyncio.create_task(fetch("ann", f"{address}/image", ours))
            assert not (await asyncio.wait([own], timeout=0.3))[0]
            for trap in traps:
                trap.cancel()
            await asyncio.gather(*traps, return_exceptions=True)
            assert (await asyncio.wait_for(own, 60)).media.size == (16, 8)

    asyncio.run(run())


def test_nothing_is_fetched_synchronously() -> None:
    with pytest.raises(VTRError, match="asynchronously"):
        connector(private_addresses=True).fetch_image("http://127.0.0.1:1/image")


# What a file becomes


def sixteen_bits() -> tuple[bytes, np.ndarray]:
    """A PNG of 16-bit greyscale, and the samples of 8 bits that a viewer shows."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    file = BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 257).save(file, "PNG")
    return file.getvalue(), grey


@pytest.mark.parametrize("way", ["data", "file", "http", "frame", "synchronous"])
def test_every_way_in_decodes_as_the_search_does(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own reader clips 16 bits at 255, and nearly all is white."""
    data, grey = sixteen_bits()
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setitem(VLLMS, "allowed_local_media_path", str(tmp_path))
    ours = connector(private_addresses=True)

    async def load() -> Any:
        if way == "frame":
            video = await ours.fetch_video_async(data_url(data, data, mime="video/jpeg"))
            return video.media[0][1]
        if way == "http":
            async with serve(data) as address:
                return await ours.fetch_image_async(f"{address}/image")
        url = data_url(data) if way == "data" else f"file://{tmp_path}/a.png"
        return await ours.fetch_image_async(url)

    loaded = ours.fetch_image(data_url(data)) if way == "synchronous" else asyncio.run(load())
    assert (np.asarray(loaded) == grey[..., None]).all()


def test_another_mode_or_ground_that_the_operator_set_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clear = BytesIO()
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(clear, "PNG")
    url = data_url(clear.getvalue())
    assert connector().fetch_image(url).media.getpixel((0, 0)) == (255, 255, 255)
    own = {"image": {"rgba_background_color": [1, 2, 3]}}
    monkeypatch.setitem(VLLMS, "media_io_kwargs", own)
    assert connector().fetch_image(url).media.getpixel((0, 0)) == (1, 2, 3)
    monkeypatch.setitem(VLLMS, "media_io_kwargs", {"image": {"image_mode": None}})
    assert connector().fetch_image(url).media.mode == "RGBA"


# Videos


def video(*frames: bytes) -> str:
    return data_url(*frames, mime="video/jpeg")


def test_a_video_of_frames_loads() -> None:
    loaded = asyncio.run(connector().fetch_video_async(video(*[image("JPEG", (8, 6))] * 3)))
    frames, facts = loaded.media
    assert (frames.shape, facts["total_num_frames"]) == ((3, 6, 8, 3), 3)
    assert loaded.pixels == 3 * 48


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (png_of_size(9000, 9000), "9000 x 9000"),
        (png_of_size(1, 4096), "200 times"),
        (image("GIF", (8, 8), frames=2), "animated"),
        (image("TIFF", (8, 8)), "no image of a format"),
        (image("JPEG", (8, 8))[:-30], "does not decode"),
        (image("JPEG", (8, 16)), "same shape"),
        (b"", "no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_frame_is_held_to_what_an_image_is_held_to(frame: bytes, why: str) -> None:
    good = image("JPEG", (8, 8))
    ours = connector()
    for load in (
        lambda: ours.fetch_video(video(good, frame)),
        lambda: asyncio.run(ours.fetch_video_async(video(good, frame))),
    ):
        with pytest.raises(InvalidMedia, match=why):
            load()


def test_no_frame_is_left_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's reader takes the first ``num_frames`` and says nothing of the rest."""
    frame = image("JPEG", (8, 8))
    with pytest.raises(InvalidMedia, match="33 frames; at most 32"):
        asyncio.run(connector().fetch_video_async(video(*[frame] * 33)))
    monkeypatch.setitem(VLLMS, "media_io_kwargs", {"video": {"num_frames": 2}})
    with pytest.raises(InvalidMedia, match="3 frames; at most 2"):
        asyncio.run(connector().fetch_video_async(video(*[frame] * 3)))
    monkeypatch.setitem(VLLMS, "media_io_kwargs", {"video": {"num_frames": -1}})
    with pytest.raises(InvalidMedia, match="33 frames; at most 32"):
        asyncio.run(connector().fetch_video_async(video(*[frame] * 33)))


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/inner\n"


@pytest.mark.parametrize("data", [PLAYLIST, image("GIF", (8, 8), frames=3), b"\0\0\0\x18ftypmp42"])
@pytest.mark.parametrize("mime", ["video/mp4", "image/gif", "VIDEO/x"])
def test_a_video_that_is_a_file_is_not_opened(data: bytes, mime: str, tmp_path: Path) -> None:
    ours = connector()
    with pytest.raises(InvalidMedia, match="does not open"):
        asyncio.run(ours.fetch_video_async(data_url(data, mime=mime)))

    async def fetch() -> None:
        async with serve(data) as address:
            await connector(private_addresses=True).fetch_video_async(f"{address}/image")

    with pytest.raises(InvalidMedia, match="does not open"):
        asyncio.run(fetch())


def test_video_files_can_be_allowed() -> None:
    """Then vLLM's reader says what is wrong with it."""
    ours = connector(video_files=True)
    with pytest.raises(InvalidMedia, match="cannot be loaded"):
        asyncio.run(ours.fetch_video_async(data_url(b"no video", mime="video/mp4")))


# Room


def test_images_are_decoded_when_there_is_room_for_all_of_a_prompt() -> None:
    ours = connector()
    url = data_url(image("PNG", (10, 10)))

    async def request(pixels: PixelBudget, let_go: asyncio.Event) -> list[Any]:
        begin_media("", 4, pixels)
        loaded = await asyncio.gather(*(ours.fetch_image_async(url) for _ in range(2)))
        assert pixels.held <= 300
        await let_go.wait()
        release_pixels(sum(item.pixels for item in loaded))
        return loaded

    async def run() -> None:
        pixels, let_go = budget(300), asyncio.Event()
        tasks = [asyncio.create_task(request(pixels, let_go)) for _ in range(3)]
        async with asyncio.timeout(60):
            while pixels.held < 200:
                await asyncio.sleep(0.001)
        assert pixels.held == 200
        assert not any(task.done() for task in tasks)
        let_go.set()
        loaded = await asyncio.gather(*tasks)
        assert all(isinstance(item, DecodedMedium) for items in loaded for item in items)
        assert pixels.held == 0

    asyncio.run(run())


def test_what_is_refused_holds_nothing() -> None:
    ours, pixels = connector(), budget(300)

    async def request(*urls: str) -> list[Any]:
        begin_media("", 3, pixels)
        loads = (ours.fetch_image_async(url) for url in urls)
        return await asyncio.gather(*loads, return_exceptions=True)

    good, bad = data_url(image("PNG", (10, 10))), data_url(png_of_size(9000, 9000))
    results = asyncio.run(request(good, bad, good))
    assert [type(result) for result in results] == [InvalidMedia] * 3
    assert asyncio.run(request(*[good] * 4))[3].code == "too_many_images"
    with pytest.raises(InvalidMedia, match="7200 pixels together"):
        raise asyncio.run(request(*[data_url(image("PNG", (60, 60)))] * 2))[0]
    assert pixels.held == 0


# Tensors in the place of images


def tensor_file(tensor: torch.Tensor, compression: int = zipfile.ZIP_STORED) -> str:
    plain, out = BytesIO(), BytesIO()
    torch.save(tensor, plain)
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(out, "w", compression) as made:
        for entry in given.infolist():
            made.writestr(entry.filename, given.read(entry))
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_tensors_are_counted_and_take_no_more_than_was_sent(kind: str) -> None:
    fetch = getattr(connector(), f"fetch_{kind}_embedding_async")

    async def request(*data: str) -> list[Any]:
        begin_media("", 2, budget())
        return await asyncio.gather(*map(fetch, data))

    good = tensor_file(torch.ones(2, 4))
    assert torch.equal(asyncio.run(request(good))[0], torch.ones(2, 4))
    with pytest.raises(TooManyImages):
        asyncio.run(request(good, good, good))
    for bad in (tensor_file(torch.zeros(99, 99), zipfile.ZIP_DEFLATED), "@@", "AAAA"):
        with pytest.raises(InvalidMedia):
            asyncio.run(request(bad))
    with pytest.raises(VLLMValidationError, match="VLLM_MAX_EMBED_DECODE_BYTES"):
        asyncio.run(request(tensor_file(torch.zeros(1, 8).expand(10**9, 8))))
