"""Each dropped token joins the kept one that it is most like, by its score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.merge import Merge, MergeInputs, to_nearest

if TYPE_CHECKING:
    import torch


class Scored(Merge):
    """``nearest``, where each token counts as much as the attention that it gets."""

    name = "scored"
    weighs_scores = True

    def weights(self, inputs: MergeInputs) -> torch.Tensor:
        return to_nearest(inputs.likeness) * inputs.dropped_scores[:, None]

    def own(self, scores: torch.Tensor) -> torch.Tensor:
        return scores
