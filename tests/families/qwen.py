"""The Qwen-VL line: images of any size, video, positions of time, row and column (M-RoPE)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.families import checkpoint
from tests.families.family import Family

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCAB = 288
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}"
    f"{{% if c['type'] in ('image', 'image_url') %}}{IMAGE}"
    f"{{% elif c['type'] in ('video', 'video_url') %}}{VIDEO}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDS = {
    "image_token_id": SPECIALS.index("<|image_pad|>"),
    "video_token_id": SPECIALS.index("<|video_pad|>"),
    "vision_start_token_id": SPECIALS.index("<|vision_start|>"),
    "vision_end_token_id": SPECIALS.index("<|vision_end|>"),
}
HIDDEN = 128
DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "bos_token_id": SPECIALS.index("<|endoftext|>"),
    "eos_token_id": SPECIALS.index("<|im_end|>"),
    "tie_word_embeddings": False,
}

# Qwen2-VL and Qwen2.5-VL are flat on the hub: the decoder's fields lie at the top.
QWEN2 = {
    **DECODER,
    **IDS,
    "vision_token_id": SPECIALS.index("<|vision_pad|>"),
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "sliding_window": 2048,
    "use_sliding_window": False,
    "max_window_layers": 8,
}
QWEN2_VL = {
    **QWEN2,
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 3,
        "embed_dim": 64,
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": HIDDEN,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}
QWEN2_5_VL = {
    **QWEN2,
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": HIDDEN,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}

QWEN3 = {
    **DECODER,
    "head_dim": 32,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rope_scaling": {
        "mrope_interleaved": True,
        "mrope_section": [6, 5, 5],
        "rope_type": "default",
    },
}
QWEN3_TOWER = {
    "deepstack_visual_indexes": [0, 1, 2],
    "depth": 4,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "in_channels": 3,
    "intermediate_size": 128,
    "num_heads": 2,
    "num_position_embeddings": 64,
    "out_hidden_size": HIDDEN,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN3_VL = {
    **IDS,
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {**QWEN3, "model_type": "qwen3_vl_text"},
    "vision_config": {**QWEN3_TOWER, "model_type": "qwen3_vl"},
}
QWEN3_VL_MOE = {
    **IDS,
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "tie_word_embeddings": False,
    "text_config": {
        **QWEN3,
        "model_type": "qwen3_vl_moe_text",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "vision_config": {**QWEN3_TOWER, "model_type": "qwen3_vl_moe"},
}


def _write(folder: Path, config: dict[str, Any], processor: ProcessorMixin, seed: int = 0) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    checkpoint.save(folder, model, processor, seed=seed)
    # Transformers writes its own form of the configuration; the hub keeps this one.
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _write_experts_as_the_hub(folder: Path) -> None:
    """Transpose them, [experts, in, out]: Transformers writes [experts, out, in] and reads both."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if ".experts." in name:
            weights[name] = weight.transpose(1, 2).contiguous()
    save_file(weights, file, metadata={"format": "pt"})


def _write_moe(folder: Path) -> None:
    _write(folder, QWEN3_VL_MOE, _qwen3_processor())
    _write_experts_as_the_hub(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    return checkpoint.tokenizer(SPECIALS, VOCAB, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _size(patch: int, frames: int = 1) -> dict[str, int]:
    """The pixels of 4 to 128 tokens, each of two by two patches."""
    pixels = (2 * patch) ** 2 * frames
    return {"shortest_edge": 4 * pixels, "longest_edge": 128 * pixels}


def _qwen2_processor(kind: type[ProcessorMixin]) -> ProcessorMixin:
    return kind(
        Qwen2VLImageProcessor(size=_size(14)),
        _tokenizer(),
        Qwen2VLVideoProcessor(size=_size(14)),
        chat_template=CHAT_TEMPLATE,
    )


def _qwen3_processor() -> ProcessorMixin:
    image = Qwen2VLImageProcessor(
        size=_size(16), patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    # Its limits are those of all frames together.
    video = Qwen3VLVideoProcessor(size=_size(16, frames=4))
    return Qwen3VLProcessor(image, _tokenizer(), video, chat_template=CHAT_TEMPLATE)


FAMILIES = (
    Family(
        name="qwen2-vl",
        architecture="Qwen2VLForConditionalGeneration",
        decoder="Qwen2Model",
        tower="Qwen2-VL ViT",
        hub=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
        # Under seed 0 it says one word again and again.
        write=lambda folder: _write(folder, QWEN2_VL, _qwen2_processor(Qwen2VLProcessor), seed=2),
        image=IMAGE,
        video=VIDEO,
        sizes=((224, 196), (336, 84), (140, 168)),
    ),
    Family(
        name="qwen2.5-vl",
        architecture="Qwen2_5_VLForConditionalGeneration",
        decoder="Qwen2Model",
        tower="Qwen2.5-VL ViT, windowed",
        hub=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        write=lambda folder: _write(folder, QWEN2_5_VL, _qwen2_processor(Qwen2_5_VLProcessor)),
        image=IMAGE,
        video=VIDEO,
        sizes=((224, 196), (336, 84), (140, 168)),
    ),
    Family(
        name="qwen3-vl",
        architecture="Qwen3VLForConditionalGeneration",
        decoder="Qwen3LLMModel",
        tower="Qwen3-VL ViT, deepstack",
        hub=("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
        write=lambda folder: _write(folder, QWEN3_VL, _qwen3_processor()),
        image=IMAGE,
        video=VIDEO,
        sizes=((256, 224), (384, 96), (160, 192)),
        quick=True,
    ),
    Family(
        name="qwen3-vl-moe",
        architecture="Qwen3VLMoeForConditionalGeneration",
        decoder="Qwen3MoeLLMModel",
        tower="Qwen3-VL ViT, deepstack",
        hub=("Qwen/Qwen3-VL-30B-A3B-Instruct",),
        write=_write_moe,
        image=IMAGE,
        video=VIDEO,
        sizes=((256, 224), (384, 96), (160, 192)),
    ),
)
