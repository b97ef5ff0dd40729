"""Attention from the last prompt token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.attention import AttentionRule

if TYPE_CHECKING:
    import numpy as np


class Last(AttentionRule):
    """Attention from the last prompt token (FastV, arXiv 2403.06764: what its code ranks by)."""

    name = "last"

    def asking(self, rows: int, instruction_rows: int) -> np.ndarray:
        import numpy as np

        return np.array([rows - 1])
