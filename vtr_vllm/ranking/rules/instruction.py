"""Mean attention from the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.attention import AttentionRule

if TYPE_CHECKING:
    from vtr_vllm.ranking.inputs import RankInputs


class Instruction(AttentionRule):
    """Mean attention from the instruction: the prompt text after the last vision token."""

    name = "instruction"

    def asking_rows(self, inputs: RankInputs) -> int:
        return inputs.instruction_rows
