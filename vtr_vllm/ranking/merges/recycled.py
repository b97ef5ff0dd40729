"""The better ones of the dropped tokens are recycled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.merge import Merge, MergeInputs, to_nearest

if TYPE_CHECKING:
    import torch

SHARE = 0.3
"""Of the dropped tokens, by score."""


class Recycled(Merge):
    """``nearest`` for the best-ranked 30% of the dropped tokens; the others vanish (SparseVLM,
    arXiv 2410.04417, which makes tokens of their own out of clusters of these)."""

    name = "recycled"

    def weights(self, inputs: MergeInputs) -> torch.Tensor:
        import torch

        found = to_nearest(inputs.likeness)
        place = torch.arange(found.shape[-1], device=found.device) + inputs.first
        return found * (place < SHARE * inputs.dropped)
