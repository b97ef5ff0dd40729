"""Attention from the last prompt token."""

from __future__ import annotations

from vtr_vllm.ranking.attention import AttentionRule


class Last(AttentionRule):
    """Attention from the last prompt token (FastV, arXiv 2403.06764: what its code ranks by)."""

    name = "last"

    def asking_rows(self, instruction_rows: int) -> int:
        return 1
