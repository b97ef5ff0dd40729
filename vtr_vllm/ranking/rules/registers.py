"""Learned registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch


class Registers(ImageRule):
    """An image's registers, the first one first (Victor, arXiv 2410.14072, section 3): what the layers
    before the cut wrote into them stands for the image. Behind them its own tokens, in their order."""

    name = "registers"
    needs = frozenset({Need.REGISTERS})

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        import torch

        own = images.size - images.registers
        tokens = images.tokens
        return torch.where(tokens < own, -tokens, images.size - tokens).float()
