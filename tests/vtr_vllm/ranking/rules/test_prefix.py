import torch

from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rules.prefix import Prefix


def test_the_first_tokens_come_first():
    tokens = torch.tensor([[0, 1, 2, 3], [0, 2, 3, 5]])
    scores = Prefix().score_images(ImageInputs(tokens=tokens, size=6, grid=(2, 3), seeds=[1, 2]))
    assert scores.tolist() == [[0, -1, -2, -3], [0, -2, -3, -5]]
