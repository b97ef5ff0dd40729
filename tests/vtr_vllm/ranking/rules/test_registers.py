import torch

from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rules.registers import Registers


def test_registers_come_first_and_the_first_of_them():
    """Six tokens, two of them registers; of the second image some are gone."""
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 5]])
    images = ImageInputs(tokens=tokens, size=6, grid=None, seeds=[1, 2], registers=2)
    scores = Registers().score_images(images)
    assert scores.tolist() == [[0, -1, -2, -3, 2, 1], [0, -1, -2, 2, 1, 1]]
