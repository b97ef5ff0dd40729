"""How images get in: vLLM's media connector, with errors that say that the image is at fault."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from PIL import Image
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from vtr_vllm.errors import InvalidMedia
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


class _CheckedMediaConnector(MediaConnector):
    """vLLM's connector, whose errors say that the image is at fault.

    vLLM answers 500 or 501 to some of them (a decompression bomb, a file URL, a host that does
    not answer), and a 500 also closes the connection that other requests may share.
    """

    def load_from_url(self, url: str, *args: Any, **kw: Any) -> Any:
        with _as_invalid_media(url):
            return super().load_from_url(url, *args, **kw)

    async def load_from_url_async(self, url: str, *args: Any, **kw: Any) -> Any:
        with _as_invalid_media(url):
            return await super().load_from_url_async(url, *args, **kw)


@contextmanager
def _as_invalid_media(url: str) -> Iterator[None]:
    try:
        yield
    except _MEDIA_ERRORS as err:
        raise InvalidMedia(
            f"image_url {show(url)} cannot be loaded ({err}); send a PNG, JPEG or WebP image as a"
            " base64 data URL, or an http(s) address that this server can reach"
        ) from err


def install_media_connector() -> None:
    """Put ours in the place of vLLM's default; a connector that the user chose stays."""
    MEDIA_CONNECTOR_REGISTRY.register("http")(_CheckedMediaConnector)
