"""Attention from the last prompt token (FastV, arXiv 2403.06764: what its code ranks by)."""

import torch

from vtr_vllm.reduction.ranking.attention import attention_received
from vtr_vllm.reduction.ranking.inputs import RankInputs
from vtr_vllm.schedules import RankRule


def score(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    return attention_received(inputs, 1, rule.heads)
