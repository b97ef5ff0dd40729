"""How images get in: vLLM's media connector, with errors that say that the image is at fault."""

import base64
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.image import ImageMediaIO

from vtr_server.media.limits import MediaGuard, admit_medium
from vtr_server.policy.settings import MediaSettings
from vtr_vllm.errors import InvalidMedia, VTRError
from vtr_vllm.schedules.strict_json import show

__all__ = ["install_media_connector"]

_MEDIA_ERRORS = (
    aiohttp.ClientError,  # the address does not answer
    EOFError,  # EOFError to zlib.error: what Pillow raises on broken files
    Image.DecompressionBombError,
    NotImplementedError,  # data URLs without base64
    OSError,
    RuntimeError,  # file URLs without --allowed-local-media-path
    SyntaxError,
    TimeoutError,
    ValueError,
    struct.error,
    zlib.error,
)


class _Connection(HTTPConnection):
    """vLLM's connection, through a client that checks where it leads."""

    def __init__(self, guard: MediaGuard) -> None:
        super().__init__()
        self._guard = guard
        self._session: aiohttp.ClientSession | None = None

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._guard.session()
        return self._session

    def get_sync_client(self) -> Any:
        raise VTRError("images are fetched asynchronously: nothing checks a synchronous client")


class _HeaderFirst:
    """An image reader of vLLM's that looks at the header before anything is decoded."""

    def __init__(self, reader: ImageMediaIO, guard: MediaGuard) -> None:
        self._reader = reader
        self._guard = guard

    def load_bytes(self, data: bytes) -> Any:
        self._guard.check_image(data)
        return self._reader.load_bytes(data)

    def load_base64(self, _: str, data: str) -> Any:
        return self.load_bytes(base64.b64decode(data, validate=True))

    def load_file(self, path: Path) -> Any:
        return self.load_bytes(path.read_bytes())

    def get_max_bytes(self) -> int | None:
        limit: int | None = self._reader.get_max_bytes()
        return limit


class _CheckedMediaConnector(MediaConnector):
    """vLLM's connector behind a guard, whose errors say that the image is at fault.

    vLLM answers 500 or 501 to some of them (a decompression bomb, a file URL, a host that does
    not answer), and a 500 also closes the connection that other requests may share.
    """

    def __init__(self, *args: Any, guard: MediaGuard, connection: HTTPConnection, **kw: Any):
        super().__init__(*args, connection=connection, **kw)
        self._guard = guard

    def load_from_url(self, url: str, media_io: Any, **kw: Any) -> Any:
        with _as_invalid_media(url):
            return super().load_from_url(url, self._admit(url, media_io), **kw)

    async def load_from_url_async(self, url: str, media_io: Any, **kw: Any) -> Any:
        with _as_invalid_media(url):
            return await super().load_from_url_async(url, self._admit(url, media_io), **kw)

    def _admit(self, url: str, media_io: Any) -> Any:
        """Count the medium and look at its address; returns what reads it."""
        admit_medium()
        scheme = url.partition(":")[0].lower()
        if scheme not in ("data", "file"):  # a file needs vLLM's --allowed-local-media-path
            self._guard.check_url(url)
        return (
            _HeaderFirst(media_io, self._guard) if isinstance(media_io, ImageMediaIO) else media_io
        )


@contextmanager
def _as_invalid_media(url: str) -> Iterator[None]:
    try:
        yield
    except VTRError:
        raise
    except VLLMUnprocessableEntityError as err:
        if isinstance(err.__cause__, VTRError):  # a redirect, or an address, that was refused
            raise err.__cause__ from err
        raise
    except _MEDIA_ERRORS as err:
        raise InvalidMedia(
            f"image_url {show(url)} cannot be loaded ({err}); send a PNG, JPEG or WebP image as a"
            " base64 data URL, or an http(s) address that this server can reach"
        ) from err


def install_media_connector(media: MediaSettings, most_pixels: int) -> None:
    """Put ours in the place of vLLM's default; a connector that the user chose stays."""
    guard = MediaGuard(media, most_pixels)
    make = partial(_CheckedMediaConnector, guard=guard, connection=_Connection(guard))
    MEDIA_CONNECTOR_REGISTRY.register("http")(make)
