"""Mean attention from the instruction: the prompt text after the last vision token."""

import torch

from vtr_vllm.reduction.ranking.attention import attention_received
from vtr_vllm.reduction.ranking.inputs import RankInputs
from vtr_vllm.schedules import RankRule


def score(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    return attention_received(inputs, inputs.request.instruction_len, rule.heads)
