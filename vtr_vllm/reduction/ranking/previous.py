"""The order of the previous cut once more: rank once, cut often."""

import torch

from vtr_vllm.reduction.ranking.inputs import RankInputs
from vtr_vllm.schedules import RankRule


def score(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    assert inputs.previous is not None
    return inputs.of_tokens(inputs.previous)
