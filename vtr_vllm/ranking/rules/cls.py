"""Attention of the vision tower's CLS token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.rule import Need, RankRule

if TYPE_CHECKING:
    import torch

    from vtr_vllm.ranking.inputs import RankInputs


class Cls(RankRule):
    """Attention of the vision tower's CLS token to each patch (VTC-CLS, arXiv 2412.05819)."""

    name = "cls"
    needs = frozenset({Need.TOWER})
    sees_question = False

    def score(self, inputs: RankInputs) -> torch.Tensor:
        assert inputs.cls_attention is not None
        return inputs.of_tokens(inputs.cls_attention)
