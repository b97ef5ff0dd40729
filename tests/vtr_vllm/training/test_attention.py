"""The seam in Transformers: our attention function without a pass."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.llava import Llava


def test_without_a_pass_it_is_transformers_own_attention(
    llava: Llava, data: Dataset, folder: object
) -> None:
    stock = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    for example in llava.examples(data)[:2]:
        side = llava.batch([example])
        with torch.no_grad():
            states = stock.model(input_ids=side.ids, pixel_values=side.pixels).last_hidden_state
            expected = stock.lm_head(states[side.predicting])
            torch.testing.assert_close(llava.logits(side, None), expected, atol=1e-5, rtol=1e-4)
