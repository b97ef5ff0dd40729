"""The language half: SmolLM2-135M-Instruct out of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

__all__ = ["read_language"]

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
"""GGUF's names of a layer's matrices and Transformers'."""
_OUTSIDE = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


def read_language(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Return the configuration and the float32 weights, named as in Transformers' ``LlamaModel``."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    config = _config(reader)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in _OUTSIDE:
            name = _OUTSIDE[tensor.name]
        else:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"layers.{layer}.{_LAYER[kind]}.weight"
            if kind in heads:
                values = _halves_apart(values, heads[kind])
        weights[name] = torch.from_numpy(np.ascontiguousarray(values))
    return config, weights


def _config(reader: Any) -> LlamaConfig:
    """The model's form, from the file's metadata."""

    def own(name: str) -> Any:
        return reader.fields[name].contents()

    return LlamaConfig(
        vocab_size=own("llama.vocab_size"),
        hidden_size=own("llama.embedding_length"),
        intermediate_size=own("llama.feed_forward_length"),
        num_hidden_layers=own("llama.block_count"),
        num_attention_heads=own("llama.attention.head_count"),
        num_key_value_heads=own("llama.attention.head_count_kv"),
        max_position_embeddings=own("llama.context_length"),
        rms_norm_eps=round(own("llama.attention.layer_norm_rms_epsilon"), 9),
        rope_parameters={"rope_type": "default", "rope_theta": own("llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=own("tokenizer.ggml.bos_token_id"),
        eos_token_id=own("tokenizer.ggml.eos_token_id"),
        pad_token_id=own("tokenizer.ggml.padding_token_id"),
    )


def _halves_apart(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order of rotated rows: pairs side by side there, the two halves of a head here."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
