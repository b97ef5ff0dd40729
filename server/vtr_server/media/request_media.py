"""The media of one request: how many it may load and fetch, and the pixels that it holds of them."""

import asyncio
from contextvars import ContextVar
from typing import Protocol

from vtr_server.media.pixel_budget import PixelBudget
from vtr_server.policy.settings import LimitSettings
from vtr_vllm.errors import InvalidMedia, TooManyImages

__all__ = [
    "Loading",
    "RequestMedia",
    "begin_media",
    "bytes_limit",
    "count_bytes",
    "current_caller",
    "current_client",
    "load_medium",
    "release_pixels",
]

MOST_BYTES = LimitSettings().body_bytes

_current: ContextVar["RequestMedia | None"] = ContextVar("vtr_request_media", default=None)
"""That of the request of this context; None outside of one."""


class Loading(Protocol):
    """One medium on its way in."""

    async def ready(self, pixels: int) -> None:
        """Its header is read: wait until so many pixels may be decoded."""

    def fail(self, err: BaseException) -> None:
        """It will not be decoded."""


class RequestMedia:
    """What one request may load, and holds. To be closed when the request has ended."""

    def __init__(
        self,
        client: str,
        most: int,
        budget: PixelBudget,
        most_bytes: int = MOST_BYTES,
        caller: str = "",
    ) -> None:
        self.client = client
        """Whose request it is: the name of its key, or nothing."""
        self.caller = caller
        """What its allowances are counted by: its key, or its address."""
        self.most_bytes = most_bytes
        """Of all files together that are fetched for it."""
        self._most = most
        self._budget = budget
        self._loaded = 0
        self._fetched = 0
        self._held = 0
        self._closed = False
        self._together: _Together | None = None

    def load(self) -> "_Together":
        """Count one more medium; raises TooManyImages beyond the limit."""
        self._loaded += 1
        if self._together is None or self._together.is_closed:
            self._together = _Together(self)
        if self._loaded > self._most:
            err = TooManyImages(
                f"the request has more than {self._most} images, the most that this server takes;"
                " send fewer, or in several requests"
            )
            self._together.fail(err)
            raise err
        self._together.members += 1
        return self._together

    def count_bytes(self, count: int) -> None:
        """So many more were fetched (fewer than 0: let go); raises InvalidMedia beyond the limit."""
        self._fetched += count
        if count > 0 and self._fetched > self.most_bytes:
            raise InvalidMedia(
                f"the images that the request names have {self._fetched} bytes or more together; at"
                f" most {self.most_bytes} are fetched for one request: send fewer, or smaller files"
            )

    async def hold(self, pixels: int) -> None:
        """Take pixels of the budget; raises as ``PixelBudget.take``."""
        await self._budget.take(pixels, self.caller)
        if self._closed:  # its client is gone
            self._budget.give(pixels, self.caller)
        else:
            self._held += pixels

    def release(self, pixels: int) -> None:
        """So many are done with."""
        pixels = min(pixels, self._held)
        self._held -= pixels
        self._budget.give(pixels, self.caller)

    def close(self) -> None:
        """Release what is still held."""
        self._closed = True
        self.release(self._held)


class _Together:
    """Media that one prompt loads at once.

    Their pixels are taken in one go, when all headers are read: two requests that each held half of
    theirs would wait for each other.
    """

    def __init__(self, request: RequestMedia) -> None:
        self.members = 0
        self._request = request
        self._known = 0
        self._pixels = 0
        self._settled = asyncio.Event()
        self._error: BaseException | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more members: pixels were asked for, or one has failed."""
        return self._error is not None or 0 < self.members == self._known

    async def ready(self, pixels: int) -> None:
        """See Loading; raises what any of them failed with."""
        self._known += 1
        self._pixels += pixels
        if self._error is None and self._known == self.members:
            try:
                await self._request.hold(self._pixels)
            except BaseException as err:
                self.fail(err)
                raise
            self._settled.set()
        await self._settled.wait()
        if self._error is not None:
            raise self._error

    def fail(self, err: BaseException) -> None:
        """See Loading: the others are not decoded either."""
        self._error = self._error or err
        self._settled.set()


class _Alone:
    """A medium of no request: of a batch file, whose lines are the operator's."""

    async def ready(self, _: int) -> None:
        """At once."""

    def fail(self, _: BaseException) -> None:
        """Nobody else waits for it."""


def begin_media(
    client: str, most: int, budget: PixelBudget, most_bytes: int = MOST_BYTES, caller: str = ""
) -> RequestMedia:
    """What the request of this context loads from now on."""
    request = RequestMedia(client, most, budget, most_bytes, caller)
    _current.set(request)
    return request


def load_medium() -> Loading:
    """Begin to load one medium of the request of this context; raises TooManyImages."""
    request = _current.get()
    return _Alone() if request is None else request.load()


def release_pixels(pixels: int) -> None:
    """The request of this context is done with so many pixels."""
    if (request := _current.get()) is not None:
        request.release(pixels)


def count_bytes(count: int) -> None:
    """The request of this context has fetched so many more, as ``RequestMedia.count_bytes``."""
    if (request := _current.get()) is not None:
        request.count_bytes(count)


def bytes_limit() -> int | None:
    """The most that the request of this context fetches; None outside of one."""
    request = _current.get()
    return None if request is None else request.most_bytes


def current_caller() -> str:
    """Who is charged for what this context does; nothing outside of a request."""
    request = _current.get()
    return "" if request is None else request.caller


def current_client() -> str:
    """Whose request this context serves; nothing outside of one, or without a key."""
    request = _current.get()
    return "" if request is None else request.client
