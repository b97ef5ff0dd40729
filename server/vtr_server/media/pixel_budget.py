"""How many decoded pixels all requests of this process hold at once."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from vtr_vllm.errors import InvalidMedia, Overloaded

__all__ = ["WAIT_SECONDS", "PixelBudget"]

WAIT_SECONDS = 10.0
"""How long images wait for their turn before their request is told to come again."""


class PixelBudget:
    """Pixels that may be decoded at once, given out in the order in which they are asked for.

    A file of a few kilobytes may hold what its header allows, so a bound on bytes is none on memory.
    A pixel takes 3 bytes once it is decoded, and up to four times that on the way there.
    """

    def __init__(self, most: int, observe: Callable[[int], None]) -> None:
        self._most = most
        self._free = most
        self._observe = observe
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held(self) -> int:
        """Pixels that are taken now."""
        return self._most - self._free

    async def take(self, pixels: int) -> None:
        """Wait for so many pixels, which are the caller's until it gives them back.

        Raises InvalidMedia for more than there are, Overloaded after WAIT_SECONDS.
        """
        if pixels > self._most:
            raise InvalidMedia(
                f"the images of the request have {pixels} pixels together, and this server decodes at"
                f" most {self._most} at once; send fewer, or scale them down"
            )
        if not self._waiting and pixels <= self._free:
            self._change(-pixels)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turn
        except BaseException as err:
            if turn.done() and not turn.cancelled():
                self.give(pixels)  # its turn came as it was cut off
            else:
                with contextlib.suppress(ValueError):  # it was left out as others were let in
                    self._waiting.remove((pixels, turn))
                self._let_in()  # those behind it may be smaller
            if not isinstance(err, TimeoutError):
                raise
            raise Overloaded(
                f"the images of the request have {pixels} pixels and waited {WAIT_SECONDS:g} s while"
                " others were decoded; send it again later",
                retry_after=int(WAIT_SECONDS),
            ) from err

    def give(self, pixels: int) -> None:
        """Give pixels back."""
        self._change(pixels)
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            pixels, turn = self._waiting.popleft()
            if not turn.done():
                self._change(-pixels)
                turn.set_result(None)

    def _change(self, pixels: int) -> None:
        self._free += pixels
        self._observe(-pixels)
