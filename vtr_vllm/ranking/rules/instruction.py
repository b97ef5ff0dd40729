"""Mean attention from the instruction."""

from __future__ import annotations

from vtr_vllm.ranking.attention import AttentionRule


class Instruction(AttentionRule):
    """Mean attention from the instruction: the prompt text after the last vision token."""

    name = "instruction"

    def asking_rows(self, instruction_rows: int) -> int:
        return instruction_rows
