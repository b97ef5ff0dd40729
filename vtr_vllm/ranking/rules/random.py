"""A random order, fixed by the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs

if TYPE_CHECKING:
    import torch


class Random(ImageRule):
    """A random order, fixed by the image: the baseline that every other rule must beat.

    One score per vision token for all cuts, so kept sets nest from cut to cut.
    """

    name = "random"

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        import torch

        # Drawn on the host: the same tokens on every device and every tensor-parallel rank.
        draws = [
            torch.rand(images.size, generator=torch.Generator().manual_seed(seed))
            for seed in images.seeds
        ]
        return images.there(torch.stack(draws))
