"""The GLM-V line: dense and mixture of experts, and its small model for documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessorPil,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
)

from tests.families import checkpoint
from tests.families.family import Family
from tests.families.llava import DECODER, PATCH

SPECIALS = ("<pad>", "<s>", "</s>")
MARKERS = (
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
IDS = dict(zip(MARKERS, range(len(SPECIALS), len(SPECIALS) + len(MARKERS)), strict=True))
EXPERTS = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "attention_bias": True,
    "head_dim": 32,
    "use_qk_norm": False,
}


def _write(folder: Path, model: type, config: Callable[..., Any], text: dict[str, Any]) -> None:
    """Dynamic resolution, M-RoPE over half of each head, a timestamp before each frame."""
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 3, 3],
    }
    tower = {
        "depth": 3,
        "hidden_size": 64,
        "num_heads": 2,
        "image_size": 112,
        "patch_size": PATCH,
        "out_hidden_size": DECODER["hidden_size"],
        "intermediate_size": 128,
    }
    made = config(
        vision_config=tower,
        text_config={**DECODER, **text, "rope_parameters": rope},
        image_token_id=IDS["<|image|>"],
        video_token_id=IDS["<|video|>"],
        image_start_token_id=IDS["<|begin_of_image|>"],
        image_end_token_id=IDS["<|end_of_image|>"],
        video_start_token_id=IDS["<|begin_of_video|>"],
        video_end_token_id=IDS["<|end_of_video|>"],
        tie_word_embeddings=False,
    )
    tokenizer = checkpoint.tokenizer(
        (*SPECIALS, *MARKERS),
        DECODER["vocab_size"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=DECODER["max_position_embeddings"],
        extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 100}
    processor = Glm4vProcessor(
        Glm4vImageProcessorPil(size=size, patch_size=PATCH),
        tokenizer,
        Glm4vVideoProcessor(size=size, patch_size=PATCH),
    )
    checkpoint.save(folder, model(made), processor)


def _family(
    name: str,
    decoder: str,
    hub: tuple[str, ...],
    model: type,
    config: Callable[..., Any],
    **text: Any,
) -> Family:
    return Family(
        name=name,
        architecture=model.__name__,
        decoder=decoder,
        tower="GLM-4V ViT",
        hub=hub,
        write=lambda folder: _write(folder, model, config, text),
        image="<|begin_of_image|><|image|><|end_of_image|>",
        video="<|begin_of_video|><|video|><|end_of_video|>",
        sizes=((168, 168), (168, 84), (112, 140)),
    )


FAMILIES = (
    _family(
        "glm-4.1v",
        "Glm4Model",
        ("zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4.6V-Flash"),
        Glm4vForConditionalGeneration,
        Glm4vConfig,
        attention_bias=True,
    ),
    _family(
        "glm-4.5v",
        "Glm4MoeModel",
        ("zai-org/GLM-4.5V", "zai-org/GLM-4.6V"),
        Glm4vMoeForConditionalGeneration,
        Glm4vMoeConfig,
        **EXPERTS,
    ),
    _family(
        "glm-ocr",
        "Glm4Model",
        ("zai-org/GLM-OCR",),
        GlmOcrForConditionalGeneration,
        GlmOcrConfig,
    ),
)
