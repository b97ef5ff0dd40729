"""Each kept token takes up the dropped ones that are most like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.merge import Merge, MergeInputs

if TYPE_CHECKING:
    import torch

COUNT = 32


class Neighbours(Merge):
    """To a kept token the 32 dropped ones that are most like it are added, each times the attention that
    it gets (LLaVA-PruMerge, arXiv 2403.15388, whose 32 may be kept ones, too). One may join many."""

    name = "neighbours"
    is_mean = False
    by_kept = True
    weighs_scores = True

    def weights(self, inputs: MergeInputs) -> torch.Tensor:
        import torch

        count = min(COUNT, inputs.dropped)
        # Stable: of equals the better-ranked, on every device.
        order = inputs.likeness.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        found = torch.zeros_like(inputs.likeness).scatter_(-1, order, 1.0)
        return found * inputs.dropped_scores[:, None]
