"""Attention among an image's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from vtr_vllm.ranking.attention import AttentionRule

if TYPE_CHECKING:
    import numpy as np

MOST = 64
"""Of an image's rows that ask: evenly spaced, the last one among them."""


class Self(AttentionRule):
    """Mean attention that a token gets from its image's later tokens, of those that can see it.

    Sees nothing behind the image, so unlike ``last`` and ``instruction`` it ranks for any question.
    A token sees itself. Of a large image ``MOST`` rows ask. With rotary positions only: which tokens of
    the images before stayed, and so where their keys stood, is known of no step but their own.
    """

    name = "self"
    options: ClassVar[Mapping[str, tuple[str, object]]] = {"max": ("heads", "max")}
    sees_question = False
    of_one_image: ClassVar[bool] = True
    by_visible: ClassVar[bool] = True

    def asking(self, rows: int, instruction_rows: int, vision_rows: int) -> np.ndarray:
        import numpy as np

        count = min(MOST, rows)
        return (np.arange(count) + 1) * rows // count - 1
