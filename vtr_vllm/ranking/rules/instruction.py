"""Mean attention from the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.attention import AttentionRule

if TYPE_CHECKING:
    import numpy as np


class Instruction(AttentionRule):
    """Mean attention from the instruction: the prompt text after the last vision token."""

    name = "instruction"

    def asking(self, rows: int, instruction_rows: int, vision_rows: int) -> np.ndarray:
        import numpy as np

        return np.arange(rows - instruction_rows, rows)
