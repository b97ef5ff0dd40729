"""Distance of a token's input embedding from its image's median: how unlike the background.

Question-blind and a function of the image alone, so it can cut before layer 0.
"""

import numpy as np
import torch

from vtr_vllm.reduction.ranking.inputs import RankInputs
from vtr_vllm.schedules import RankRule


def score(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    assert inputs.embeddings is not None
    embeddings = inputs.embeddings.float()
    distances = torch.empty(len(embeddings), device=embeddings.device)
    first = 0
    for length in filter(None, np.bincount(inputs.request.image_of).tolist()):
        image = embeddings[first : first + length]
        distances[first : first + length] = (image - image.median(0).values).norm(dim=-1)
        first += length
    return inputs.of_tokens(distances)
