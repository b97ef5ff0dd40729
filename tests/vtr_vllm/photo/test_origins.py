"""Both halves compute what they were made from computes. Fetches 180 MB; run by ``make photo-check``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from vtr_vllm.photo.language import read_language
from vtr_vllm.photo.parts import LANGUAGE, TOWER, fetch
from vtr_vllm.photo.tower import SIDE, read_tower

pytestmark = pytest.mark.origins
FOLDER = Path("build/photo-parts")
LAST = "/backbone/layernorm/Add_1_output_0"
"""The graph's name of the last states behind the final norm."""


def test_the_tower_sees_what_the_graph_sees() -> None:
    import onnx
    import onnxruntime

    path = fetch(TOWER, FOLDER)
    graph = onnx.load(path)
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    pixels = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    (wanted,) = session.run([LAST], {"input_image": pixels})
    config, weights = read_tower(path)
    tower = InternVLVisionModel(config).eval()
    tower.load_state_dict(weights)
    with torch.no_grad():
        got = tower(torch.from_numpy(pixels)).last_hidden_state.numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


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
