"""Muon against torch's own, and its limits."""

import pytest
import torch
from torch import nn

from vtr_vllm.training.demo.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 20), (2, 20, 8)])
def test_singular_values_end_up_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_it_steps_as_torch_does_up_to_bfloat16() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(16, 24), torch.randn(3, 16, 24)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([mine], lr=0.01)
    torchs = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        for weight, optimizer in ((mine, ours), (theirs, torchs)):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(mine, theirs, atol=2e-3)
    assert not torch.allclose(mine, start, atol=2e-3)


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match="2-D"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
