"""The first tokens of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs

if TYPE_CHECKING:
    import torch


class Prefix(ImageRule):
    """The first tokens of an image: for encoders trained so that every prefix of their tokens serves
    as the image (Matryoshka queries, arXiv 2405.19315). Tokens of a grid lose its lower end."""

    name = "prefix"

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        return -images.tokens.float()
