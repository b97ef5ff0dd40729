"""The language half is the one in its file. Fetches 90 MB; run by ``make photo-check``."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from vtr_vllm.photo.language import read_language
from vtr_vllm.photo.parts import FOLDER, LANGUAGE, fetch

pytestmark = pytest.mark.origins


def test_the_language_half_is_the_one_in_the_file() -> None:
    path = fetch(LANGUAGE, FOLDER)
    config, weights = read_language(path)
    ours = LlamaForCausalLM(config).eval()
    ours.model.load_state_dict(weights)
    ours.tie_weights()
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        torch.testing.assert_close(
            ours(**asked).logits, theirs(**asked).logits, rtol=1e-3, atol=1e-3
        )
        said = ours.generate(**asked, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, asked["input_ids"].shape[1] :])
