"""The photo model: both halves, a projector between them, a tokenizer with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from vtr_vllm.photo.language import read_language
from vtr_vllm.photo.parts import LANGUAGE, PATCH, SIDE, TOWER, fetch
from vtr_vllm.photo.tower import MEAN, STD, read_tower

__all__ = ["TEMPLATE", "TOKENS", "assemble", "build_processor"]

TOKENS = (SIDE // PATCH) ** 2
"""Vision tokens of an image, 256: the tower's patches one to one."""
_NEW = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEMPLATE = """{%- for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] in ('image', 'image_url') %}{{ '<IMG_CONTEXT>' }}
{%- elif part['type'] == 'text' %}{{ part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
"""SmolLM2's own, to the letter for text, with a place for each image."""
_SEED = 0  # of the projector's first weights


def build_processor(folder: Path) -> InternVLProcessor:
    """Return the processor; ``folder`` has the language half's file. An image is drawn out to 224 x 224."""
    tokenizer = AutoTokenizer.from_pretrained(
        folder, gguf_file=Path(LANGUAGE.member).name, extra_special_tokens=_NEW
    )
    side = {"height": SIDE, "width": SIDE}
    images = GotOcr2ImageProcessorPil(
        size=side,
        crop_to_patches=False,
        min_patches=1,
        max_patches=1,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return InternVLProcessor(
        images,
        tokenizer,
        InternVLVideoProcessor(size=side, do_sample_frames=False),
        image_seq_length=TOKENS,
        chat_template=TEMPLATE,
    )


def assemble(folder: Path) -> tuple[InternVLForConditionalGeneration, InternVLProcessor]:
    """Fetch both halves into ``folder`` and put them together, float32, with an untrained projector.

    Embeddings of the image tokens are the mean of the others. Raises ConfigurationError.
    """
    text, language = read_language(fetch(LANGUAGE, folder))
    vision, tower = read_tower(fetch(TOWER, folder))
    processor = build_processor(folder)
    tokenizer: Any = processor.tokenizer
    rows = language["embed_tokens.weight"]
    mean = rows.mean(0, keepdim=True).expand(len(_NEW), -1)
    language["embed_tokens.weight"] = torch.cat([rows, mean])
    text.vocab_size = len(rows) + len(_NEW)
    config = InternVLConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
        downsample_ratio=1.0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(_SEED)
    model = InternVLForConditionalGeneration(config).eval()
    inner: Any = model.model
    inner.language_model.load_state_dict(language)
    inner.vision_tower.load_state_dict(tower)
    model.tie_weights()
    _start(inner.multi_modal_projector)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model, processor


def _start(projector: nn.Module) -> None:
    """First weights of the projector: Transformers' own start is too small to be seen by the decoder."""
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
