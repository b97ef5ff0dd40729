"""Attention of the vision tower's CLS token to each patch (VTC-CLS, arXiv 2412.05819)."""

import torch

from vtr_vllm.reduction.ranking.inputs import RankInputs
from vtr_vllm.schedules import RankRule


def score(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    assert inputs.cls_attention is not None
    return inputs.of_tokens(inputs.cls_attention)
