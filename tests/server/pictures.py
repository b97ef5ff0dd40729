"""Images, and a real HTTP server that hands one out."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

from aiohttp import web
from PIL import Image


def image(form: str, size: tuple[int, int], frames: int = 1) -> bytes:
    """A file of a real image."""
    pictures = [Image.new("RGB", size, (index * 40 % 256, 0, 0)) for index in range(frames)]
    file = BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(file, form, **more)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size; zeros deflate a thousandfold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1024))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@asynccontextmanager
async def serve(data: bytes, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """The address of a server: /image is ``data``, /to?URL redirects to URL.

    /gzip is ``data`` in the encoding of that name, /stream in parts without a length; /tarpit never
    answers, /status?N answers with status N.
    """

    async def give(_: web.Request) -> web.Response:
        return web.Response(body=data, content_type="image/png")

    async def encode(_: web.Request) -> web.Response:
        headers = {"Content-Encoding": "gzip"}
        return web.Response(body=gzip.compress(data), headers=headers, content_type="image/png")

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for start in range(0, len(data), 1000):
            await answer.write(data[start : start + 1000])
        return answer

    async def wait(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.query["url"]})

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.query_string))

    app = web.Application()
    routes = {"image": give, "to": redirect, "gzip": encode, "stream": stream, "tarpit": wait}
    routes |= {"status": answer}
    app.add_routes([web.get(f"/{name}", route) for name, route in routes.items()])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
