"""Each dropped token joins the kept one that it is most like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.merge import Merge, MergeInputs, to_nearest

if TYPE_CHECKING:
    import torch


class Nearest(Merge):
    """A kept token becomes the mean of itself and all dropped ones that are most like it (ToMe,
    arXiv 2210.09461; VisionZip's contextual tokens, arXiv 2412.04467)."""

    name = "nearest"

    def weights(self, inputs: MergeInputs) -> torch.Tensor:
        return to_nearest(inputs.likeness)
