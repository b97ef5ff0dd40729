"""A pass with a soft mask, in Transformers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtr_vllm.atp.module import AtpModules, Masking, grid_scores
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.atp.masked_attention import MaskedPass
from vtr_vllm.training.llava import Llava


def run(
    llava: Llava, data: Dataset, modules: AtpModules, masking: Masking
) -> tuple[Tensor, MaskedPass]:
    side = llava.batch(llava.examples(data)[:2])
    masked = MaskedPass(modules, grid_scores(*llava.grid), side.rows, masking)
    return llava.logits(side, masked), masked


def test_the_pass_sees_the_attention_that_transformers_computes(
    llava: Llava, data: Dataset, folder: object, modules: AtpModules
) -> None:
    """Before anything is dropped: scores of the first cut are those of layer 0's eager attention."""
    stock = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    example = llava.examples(data)[0]
    side = llava.batch([example])
    masked = MaskedPass(modules, grid_scores(*llava.grid), side.rows, Masking("hard"))
    with torch.no_grad():
        llava.logits(side, masked)
        attention = (
            stock(input_ids=side.ids, pixel_values=side.pixels, output_attentions=True)
            .attentions[0][0]
            .mean(0)
        )
    first = example.prompt.index(llava.image_token)
    image, asking = slice(first, first + 16), slice(first + 16, len(example.prompt))
    cross = attention[asking, image].mean(0)
    received = attention[image, image].tril(-1).sum(0) / torch.arange(15, -1, -1).clamp(min=1)
    received[-1] = received[:-1].mean()
    expected = [(s - s.min()) / (s.max() - s.min()) for s in (received, cross)]
    torch.testing.assert_close(
        masked.kept[1].scores[0], (expected[0] + expected[1]) / 2, atol=1e-5, rtol=1e-4
    )


def test_a_sharp_soft_mask_is_the_hard_one(
    llava: Llava, data: Dataset, modules: AtpModules
) -> None:
    with torch.no_grad():
        hard, one = run(llava, data, modules, Masking("hard"))
        soft, other = run(llava, data, modules, Masking("soft", 1e7))
        through, _ = run(llava, data, modules, Masking("straight-through", 10.0))
    assert float(one.kept[-1].share.max()) < 1
    torch.testing.assert_close(other.kept[-1].weight, one.kept[-1].weight)
    torch.testing.assert_close(soft, hard, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(through, hard, atol=1e-3, rtol=1e-3)


def test_a_dropped_row_still_sees_itself(llava: Llava, data: Dataset, modules: AtpModules) -> None:
    """G_ii = 1: no row of the softmax is empty, whatever is dropped."""
    with torch.no_grad():
        _, masked = run(llava, data, modules, Masking("hard"))
    bias = masked.bias(0)[:, 0]
    assert bool((bias.diagonal(dim1=1, dim2=2) == 0).all())
    gone = ~masked.kept[-1].alive[0]
    column = masked._rows.vision[0][gone][0]
    assert bool((bias[0, column + 1 :, column] == float("-inf")).all())


def test_gradients_reach_every_cut(llava: Llava, data: Dataset, modules: AtpModules) -> None:
    for mode in ("soft", "straight-through"):
        modules.zero_grad()
        logits, _ = run(llava, data, modules, Masking(mode, 10.0))
        logits.square().mean().backward()
        for name, weight in modules.named_parameters():
            assert weight.grad is not None, name
            assert bool(weight.grad.isfinite().all()), name
        for index in range(3):
            assert float(modules.cut(index).heads.weight.grad.abs().max()) > 0
