"""A random order, fixed by the prompt: the baseline that every other rule must beat.

One score per vision token for the whole request, so kept sets nest from cut to cut.
"""

import torch

from vtr_vllm.reduction.ranking.inputs import RankInputs
from vtr_vllm.schedules import RankRule


def score(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    # Drawn on the host: the same tokens on every device and every tensor-parallel rank.
    generator = torch.Generator().manual_seed(inputs.request.seed)
    scores = torch.rand(inputs.request.plan.n_vision, generator=generator)
    return inputs.of_tokens(scores.to(inputs.vision.device))
