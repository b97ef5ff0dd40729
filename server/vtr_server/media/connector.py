"""How images get in: vLLM's media connector, with errors that say that the image is at fault.

A medium comes in two steps. vLLM fetches its bytes, and its header is read; then its pixels are
decoded, once the process has room for those of all media of the prompt.
"""

import asyncio
import base64
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
from PIL import Image
from vllm.connections import HTTPConnection, _async_retry
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.connector import global_thread_pool
from vllm.utils.sparse_utils import safe_to_dense

from vtr_server.media.limits import MediaGuard
from vtr_server.media.readers import DecodedMedium, Medium, reader_of
from vtr_server.media.request_media import (
    count_bytes,
    current_caller,
    current_client,
    load_medium,
    release_pixels,
)
from vtr_server.policy.settings import LimitSettings, MediaSettings
from vtr_vllm.engine.frontend import client_media, client_tensors
from vtr_vllm.errors import InvalidMedia, VTRError, show

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


FETCHES_PER_CALLER = 32
"""Addresses that one caller has fetched at once. Hosts that never answer hold one for minutes, with
vLLM's retries: they take the caller's own, and nobody else's."""


class _Connection(HTTPConnection):
    """vLLM's connection, through a client that checks where it leads and how much comes."""

    def __init__(self, guard: MediaGuard) -> None:
        super().__init__()
        self._guard = guard
        self._session: aiohttp.ClientSession | None = None
        self._fetches: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def async_get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,
        allow_redirects: bool = True,
        max_bytes: int | None = None,
    ) -> bytes:
        """As vLLM's; raises InvalidMedia for a body that is encoded or too large."""
        caller = current_caller()
        fetches = self._fetches.get(caller)
        if fetches is None:
            fetches = self._fetches[caller] = asyncio.Semaphore(FETCHES_PER_CALLER)
        async with fetches:
            return await self._fetch(
                url, timeout=timeout, allow_redirects=allow_redirects, most=max_bytes
            )

    @_async_retry
    async def _fetch(
        self, url: str, *, timeout: float | None, allow_redirects: bool, most: int | None
    ) -> bytes:
        getting = self.get_async_response(url, timeout=timeout, allow_redirects=allow_redirects)
        async with await getting as answer:
            answer.raise_for_status()
            return await _read_body(answer, self._guard.most_bytes if most is None else most)

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._guard.session()
        return self._session

    def get_sync_client(self) -> Any:
        raise VTRError("images are fetched asynchronously: nothing checks a synchronous client")


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
            self._check_address(url)
            return super().load_from_url(url, reader_of(media_io, self._guard), **kw).decode()

    async def load_from_url_async(self, url: str, media_io: Any, **kw: Any) -> Any:
        loading = load_medium()
        try:
            with _as_invalid_media(url):
                self._check_address(url)
                reader = reader_of(media_io, self._guard)
                medium: Medium = await super().load_from_url_async(url, reader, **kw)
            await loading.ready(medium.pixels)
        except BaseException as err:
            loading.fail(err)
            raise
        with _as_invalid_media(url):
            return await _in_thread(medium.decode)

    async def fetch_image_embedding_async(self, data: str) -> Any:
        return await self._fetch_tensor(data, "image_embeds")

    async def fetch_audio_embedding_async(self, data: str) -> Any:
        return await self._fetch_tensor(data, "audio_embeds")

    async def fetch_video_embedding_async(self, data: str) -> Any:
        return await self._fetch_tensor(data, "video_embeds")

    async def _fetch_tensor(self, data: str, field: str) -> Any:
        """A tensor in the place of a medium, which counts as one; only with --enable-mm-embeds."""
        loading = load_medium()
        try:
            with _as_invalid_media(field):
                tensor = await _in_thread(partial(_read_tensor, data, field))
            await loading.ready(0)
        except BaseException as err:
            loading.fail(err)
            raise
        return tensor

    def _check_address(self, url: str) -> None:
        scheme = url.partition(":")[0].lower()
        if scheme not in ("data", "file"):  # a file needs vLLM's --allowed-local-media-path
            self._guard.check_url(url)


async def _read_body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, counted as it comes; nothing of it is counted where it is refused or breaks off."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise InvalidMedia(
            f"the answer has Content-Encoding {show(encoding)}; have its host send the image as it"
            " is (identity), or send it as a data URL"
        )
    if (answer.content_length or 0) > most:
        raise _too_large(answer.content_length, most)
    body = bytearray()
    try:
        async for part in answer.content.iter_any():
            body += part
            count_bytes(len(part))
            if len(body) > most:
                raise _too_large(len(body), most)
    except BaseException:
        count_bytes(-len(body))
        raise
    return bytes(body)


def _too_large(size: int | None, most: int) -> InvalidMedia:
    return InvalidMedia(
        f"the image at its address has {size} bytes or more; at most {most} are fetched: send a"
        " smaller file"
    )


async def _in_thread(work: Any) -> Any:
    """Where vLLM decodes too: its pool bounds how many at once."""
    return await asyncio.get_running_loop().run_in_executor(global_thread_pool, work)


def _read_tensor(data: str, field: str) -> Any:
    tensor = client_tensors.read_tensor(base64.b64decode(data, validate=True))
    return safe_to_dense(tensor, parameter=field)


@contextmanager
def _as_invalid_media(url: str) -> Iterator[None]:
    try:
        yield
    except VTRError:
        raise
    except VLLMUnprocessableEntityError as err:
        if isinstance(err.__cause__, VTRError):  # a redirect, or an address, that was refused
            raise err.__cause__ from err
        raise _cannot_be_loaded(url, err.args[0]) from err  # its text has the address once more
    except _MEDIA_ERRORS as err:
        raise _cannot_be_loaded(url, err) from err


def _cannot_be_loaded(url: str, why: object) -> InvalidMedia:
    return InvalidMedia(
        f"image_url {show(url)} cannot be loaded ({why}); send a PNG, JPEG or WebP image as a"
        " base64 data URL, or an http(s) address that this server can reach"
    )


def _processed(media: Iterable[object]) -> None:
    release_pixels(sum(item.pixels for item in media if isinstance(item, DecodedMedium)))


def install_media_connector(media: MediaSettings, limits: LimitSettings) -> None:
    """Put ours in the place of vLLM's default; a connector that the user chose stays.

    What a client says of its media is checked behind either.
    """
    guard = MediaGuard(media, limits)
    make = partial(_CheckedMediaConnector, guard=guard, connection=_Connection(guard))
    MEDIA_CONNECTOR_REGISTRY.register("http")(make)
    client_media.install(current_client, _processed)
    client_tensors.install()
