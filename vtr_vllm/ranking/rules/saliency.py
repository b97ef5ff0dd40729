"""How unlike its image a token is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch


class Saliency(ImageRule):
    """Distance of a token's input embedding from its image's median: how unlike the background.

    Question-blind and a function of the image alone, so it can cut before layer 0.
    """

    name = "saliency"
    needs = frozenset({Need.EMBEDDINGS})

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        assert images.embeddings is not None
        embeddings = images.embeddings.float()
        middle = embeddings.median(1, keepdim=True).values
        return images.there((embeddings - middle).norm(dim=-1))
