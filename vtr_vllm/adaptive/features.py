"""What a prompt shows before anything of it ran: its words, its length, its images' sizes.

The same numbers offline, where a predictor is fitted, and in every front end: token ids and counts
go in, and the hash is CRC-32.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

BUCKETS: Final = 4096
"""Places of the hashed n-grams."""
SIZES: Final = ("text tokens", "images", "vision tokens")
"""What the places behind the n-grams hold."""
OF_WORDS: Final = BUCKETS + 1
"""Places of what words show, their number included; behind them what images show."""
WIDTH: Final = BUCKETS + len(SIZES)

_LAST = 128  # text tokens at the end of the prompt that are looked at: a history has no end
_LONGEST = 3  # n of the n-grams
_ID = 8  # bytes of a token's id
_SCALE = 16.0  # of the logarithms: about 1 at 65,536 tokens, in the order of an n-gram's share


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt, as far as a chooser looks at it."""

    text: tuple[int, ...]
    """The ids of its tokens that are no vision tokens, in order."""
    image_sizes: tuple[int, ...]
    """Vision tokens of each image or video."""

    @classmethod
    def of(cls, token_ids: Sequence[int], vision: npt.ArrayLike, sizes: Sequence[int]) -> "Prompt":
        """From all token ids, the ascending positions of the vision tokens, and ``image_sizes``."""
        ids = np.asarray(token_ids, dtype=np.int64)
        seen = np.ones(len(ids), dtype=bool)
        seen[np.asarray(vision, dtype=np.int64)] = False
        return cls(tuple(ids[seen].tolist()), tuple(map(int, sizes)))

    @cached_property
    def draw(self) -> float:
        """A number in [0, 1), the same for the same words: decides where a price is mixed."""
        return zlib.crc32(_bytes(self.text[-_LAST:]), 1) / 2**32


def features(prompt: Prompt) -> dict[int, float]:
    """Place in [0, WIDTH) -> value; places that are left out are 0.

    The n-grams (n up to 3) of the last 128 text tokens, counted in BUCKETS places and scaled to
    length 1; behind them the logarithms of SIZES.
    """
    ids = _bytes(prompt.text[-_LAST:])
    counts: dict[int, float] = {}
    for length in range(_ID, _LONGEST * _ID + 1, _ID):
        for start in range(0, len(ids) - length + 1, _ID):
            place = zlib.crc32(ids[start : start + length]) % BUCKETS
            counts[place] = counts.get(place, 0.0) + 1.0
    norm = math.sqrt(math.fsum(count * count for count in counts.values()))
    found = {place: count / norm for place, count in sorted(counts.items())}
    sizes = (len(prompt.text), len(prompt.image_sizes), sum(prompt.image_sizes))
    for place, size in enumerate(sizes, BUCKETS):
        found[place] = math.log2(1 + size) / _SCALE
    return found


def _bytes(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i8").tobytes()
