"""The training loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vtr_vllm.training.atp.loss import Weights, governed, mean_keep, training_loss

SHARES = [torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.25])]


def test_layers_that_each_cut_governs() -> None:
    assert governed((2, 5, 9), 12) == [2, 3, 4, 3]
    assert sum(governed((4, 14, 24), 32)) == 32


def test_the_mean_keep_rate_counts_the_full_layers() -> None:
    torch.testing.assert_close(mean_keep(SHARES, (2, 3), 4), torch.tensor([3.5, 2.75]) / 4)
    none = mean_keep([torch.zeros(1)] * 3, (4, 14, 24), 32)
    assert float(none) * 576 == pytest.approx(72)  # four full layers, below the paper's 88 tokens


def test_all_terms() -> None:
    logits = torch.zeros(3, 4)
    answers = torch.tensor([0, 1, 2])
    found = training_loss(logits, answers, SHARES, (2, 3), 4, Weights(0.1, 2.0, 0.5))
    assert float(found.answer) == pytest.approx(math.log(4))
    assert float(found.depth) == pytest.approx((2 * 1.0 + 3 * 0.5 + 2 * 0.5 + 3 * 0.25) / 2)
    assert float(found.keep) == pytest.approx(6.25 / 8)
    assert float(found.distance) == pytest.approx(6.25 / 8 - 0.5)
    expected = math.log(4) + 0.1 * float(found.depth) + 2 * float(found.distance)
    assert float(found.total) == pytest.approx(expected)


def test_the_target_pulls_from_both_sides() -> None:
    for share, sign in ((0.9, 1.0), (0.1, -1.0)):
        kept = torch.tensor([share], requires_grad=True)
        zeros = torch.zeros(1, 2), torch.tensor([0])
        training_loss(*zeros, [kept], (1,), 2, Weights(0.0, 1.0, 0.7)).total.backward()
        assert kept.grad is not None
        assert float(kept.grad) == pytest.approx(0.5 * sign)
