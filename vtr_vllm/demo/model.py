"""The demo model: its configuration, its initial weights, and a decoder pass with open parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vtr_vllm.demo.tokenizer import BOS, EOS, IDS, IMAGE, PAD, VOCABULARY_SIZE
from vtr_vllm.demo.world import IMAGE_SIDE, PATCH_SIDE, VISION_TOKENS, Pixels

WIDTH = 128
HEADS = 2
HEAD_WIDTH = 64
LAYERS = 12
TOWER_LAYERS = 4
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which the processor applies
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def build_config() -> LlavaConfig:
    """Return the configuration: 168-pixel CLIP tower, 2-layer projector, 12-layer Llama."""
    ids = {"bos_token_id": IDS[BOS], "eos_token_id": IDS[EOS], "pad_token_id": IDS[PAD]}
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        **ids,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        projection_dim=WIDTH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IDS[IMAGE],
        image_seq_length=VISION_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    for name, value in ids.items():
        setattr(config, name, value)
    return config


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Return an untrained model.

    In every decoder layer head 0 starts 'mimetic': queries equal keys and the output undoes
    the values, so that a token attends to tokens like itself and copies them. Without that
    start a model this small stays on a plateau for hundreds of steps.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _init_weight(name, weight)
        for layer in model.model.language_model.layers:
            attention, head = layer.self_attn, slice(0, HEAD_WIDTH)
            query = attention.q_proj.weight[head] * 0.8
            attention.q_proj.weight[head] = query
            attention.k_proj.weight[head] = query
            attention.o_proj.weight[:, head] = attention.v_proj.weight[head].T * 0.05
    return model


def _init_weight(name: str, weight: Tensor) -> None:
    if weight.ndim == 2 and "language_model.layers" in name:
        weight.normal_(0, 1 / math.sqrt(weight.shape[1]))
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()
    elif weight.ndim == 2 and (
        ("vision_tower" in name and "layers" in name) or "projector" in name
    ):
        weight.normal_(0, 1 / math.sqrt(weight.shape[1]))
        if "out_proj" in name or "fc2" in name:
            weight.mul_(1 / math.sqrt(2 * TOWER_LAYERS))
    elif "patch_embedding" in name:
        weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
    elif "position_embedding" in name or "class_embedding" in name:
        weight.normal_(0, 0.3)
    elif "embed_tokens" in name:
        weight.normal_(0, 0.08)


def normalise(images: Pixels) -> Tensor:
    """Return pixel values ``[n, 3, 168, 168]`` of uint8 images ``[n, 168, 168, 3]``."""
    scaled = images.astype(np.float32) / 255
    scaled = (scaled - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Return the projected vision tokens ``[n, 144, 128]`` of pixel values."""
    tower = model.model.vision_tower(pixels).last_hidden_state  # before CLIP's last norm
    return model.model.multi_modal_projector(tower[:, 1:])


@dataclass
class Trace:
    """What a decoder pass saw, one entry per layer.

    inputs: normed layer input at the reader rows, ``[b, r, width]``.
    attention: float32 softmax over all keys of the reader rows, ``[b, heads, r, n]``.
    """

    inputs: list[Tensor]
    attention: list[Tensor]


Cut = Callable[[int, Tensor], Tensor | None]


def decoder_pass(
    model: LlavaForConditionalGeneration,
    x: Tensor,
    positions: Tensor,
    mask: Tensor,
    readers: Tensor | None = None,
    cut: Cut | None = None,
) -> tuple[Tensor, Trace]:
    """Run the decoder and return the normed output ``[b, n, width]`` and a trace.

    x: ``[b, n, width]`` embeddings; positions: ``[b, n]``; mask: bool ``[b, 1, n, n]``, true
    where a row may look. readers: ``[b, r]`` rows to trace, if any. cut: called after each
    layer with its index and the hidden states; may return rows to keep, the same for all of
    the batch, and readers among them.
    """
    decoder = model.model.language_model
    trace = Trace([], [])
    cos, sin = decoder.rotary_emb(x, positions)
    for index, layer in enumerate(decoder.layers):
        hidden = layer.input_layernorm(x)
        attention = layer.self_attn
        shape = (*hidden.shape[:2], HEADS, HEAD_WIDTH)
        query = attention.q_proj(hidden).view(shape).transpose(1, 2)
        key = attention.k_proj(hidden).view(shape).transpose(1, 2)
        value = attention.v_proj(hidden).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos.to(query.dtype), sin.to(query.dtype))
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + attention.o_proj(out.transpose(1, 2).reshape(*hidden.shape[:2], -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if readers is not None:
            rows = readers[..., None].expand(-1, -1, hidden.shape[-1])
            trace.inputs.append(hidden.gather(1, rows))
            trace.attention.append(_reader_attention(query, key, mask, readers))
        keep = cut(index, x) if cut else None
        if keep is not None:
            x, cos, sin = x[:, keep], cos[:, keep], sin[:, keep]
            mask = mask[:, :, keep][:, :, :, keep]
            if readers is not None:
                readers = torch.searchsorted(keep, readers)
    return decoder.norm(x), trace


def _reader_attention(query: Tensor, key: Tensor, mask: Tensor, readers: Tensor) -> Tensor:
    rows = readers[:, None, :, None]
    asked = query.gather(2, rows.expand(-1, query.shape[1], -1, query.shape[-1]))
    scores = (asked @ key.transpose(-1, -2)).float() * HEAD_WIDTH**-0.5
    allowed = mask.gather(2, rows.expand(-1, -1, -1, mask.shape[-1]))
    return scores.masked_fill(~allowed, -1e9).softmax(-1)


def patch_logits(features: Tensor, words: Tensor, embeddings: Tensor) -> Tensor:
    """Return how much each token looks like each word, ``[..., words]``.

    The dot product of the layer-normed token with the unit-length word embedding.
    """
    normed = functional.layer_norm(features.float(), (features.shape[-1],))
    return normed @ functional.normalize(embeddings[words], dim=-1).T


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
