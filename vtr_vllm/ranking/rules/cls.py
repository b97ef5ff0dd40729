"""Attention of the vision tower's CLS token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch


class Cls(ImageRule):
    """Attention of the vision tower's CLS token to each patch (VTC-CLS, arXiv 2412.05819)."""

    name = "cls"
    needs = frozenset({Need.TOWER})

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        assert images.cls_attention is not None
        return images.there(images.cls_attention)
