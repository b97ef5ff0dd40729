"""The dropped tokens become one with the last kept one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.merge import Merge, MergeInputs

if TYPE_CHECKING:
    import torch


class Tail(Merge):
    """The last-ranked kept token becomes the mean of itself and all dropped ones, with weights 1, 2, 3 ..
    that grow towards the lowest rank (iLLaVA, arXiv 2412.06263)."""

    name = "tail"

    def weights(self, inputs: MergeInputs) -> torch.Tensor:
        import torch

        found = torch.zeros_like(inputs.likeness)
        place = torch.arange(found.shape[-1], device=found.device) + inputs.first
        found[:, -1] = (place + 2).float()
        return found
