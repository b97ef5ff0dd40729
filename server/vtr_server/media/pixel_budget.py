"""How many decoded pixels all requests of this process hold at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from vtr_server.callers import count
from vtr_vllm.errors import CallerBusy, InvalidMedia, Overloaded

__all__ = ["WAIT_SECONDS", "PixelBudget"]

WAIT_SECONDS = 10.0
"""How long images wait for their turn before their request is told to come again."""


@dataclass(frozen=True, eq=False)
class _Wish:
    pixels: int
    caller: str
    turn: asyncio.Future[None]


class PixelBudget:
    """Pixels that may be decoded at once, given out in the order in which they are asked for.

    No caller holds more than half of them, but for one prompt that has more by itself. Who has his share
    waits for his own, and holds up nobody else.

    A file of a few kilobytes may hold what its header allows, so a bound on bytes is none on memory.
    A pixel takes 3 bytes once it is decoded, and up to four times that on the way there.
    """

    def __init__(self, most: int, observe: Callable[[int], None]) -> None:
        self._most = most
        self._free = most
        self._observe = observe
        self._held: Counter[str] = Counter()
        self._waiting: list[_Wish] = []

    @property
    def held(self) -> int:
        """Pixels that are taken now."""
        return self._most - self._free

    async def take(self, pixels: int, caller: str) -> None:
        """Wait for so many pixels, which are the caller's until it gives them back.

        Raises InvalidMedia for more than there are; after WAIT_SECONDS CallerBusy, where the caller has its
        share, or Overloaded.
        """
        if pixels > self._most:
            raise InvalidMedia(
                f"the images of the request have {pixels} pixels together, and this server decodes at"
                f" most {self._most} at once; send fewer, or scale them down"
            )
        wish = _Wish(pixels, caller, asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        self._let_in()
        if wish.turn.done():
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await wish.turn
        except BaseException as err:
            if wish.turn.done() and not wish.turn.cancelled():
                self.give(pixels, caller)  # its turn came as it was cut off
            else:
                with contextlib.suppress(ValueError):  # it was left out as others were let in
                    self._waiting.remove(wish)
                self._let_in()  # those behind it may be smaller
            if not isinstance(err, TimeoutError):
                raise
            if not self._is_within_share(wish):
                raise CallerBusy(
                    f"the images of the request have {pixels} pixels and waited {WAIT_SECONDS:g} s for"
                    f" others of yours, which hold {self._held[caller]} of the {self._most // 2} that one"
                    " caller may have; send this one when another has ended",
                    retry_after=int(WAIT_SECONDS),
                ) from err
            raise Overloaded(
                f"the images of the request have {pixels} pixels and waited {WAIT_SECONDS:g} s while"
                " others were decoded; send it again later",
                retry_after=int(WAIT_SECONDS),
            ) from err

    def give(self, pixels: int, caller: str) -> None:
        """Give pixels of a caller back."""
        self._change(-pixels, caller)
        self._let_in()

    def _let_in(self) -> None:
        """Whose turn it is: a caller who has his share is passed, with all that he asks for."""
        passed: set[str] = set()
        for wish in list(self._waiting):
            if wish.turn.done():
                self._waiting.remove(wish)
            elif wish.caller in passed or not self._is_within_share(wish):
                passed.add(wish.caller)
            elif wish.pixels > self._free:
                break  # or it would be passed for ever
            else:
                self._waiting.remove(wish)
                self._change(wish.pixels, wish.caller)
                wish.turn.set_result(None)

    def _is_within_share(self, wish: _Wish) -> bool:
        held = self._held[wish.caller]
        return held == 0 or held + wish.pixels <= self._most // 2

    def _change(self, more: int, caller: str) -> None:
        self._free -= more
        count(self._held, caller, more)
        self._observe(more)
