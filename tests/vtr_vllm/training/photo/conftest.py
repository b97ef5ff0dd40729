"""A tiny model of the photo model's form, and pictures of noise with questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
)

from tests.families import checkpoint
from vtr_vllm.photo.model import TEMPLATE
from vtr_vllm.training.photo.pictures import Features, Picture, Question

SIDE, PATCH, WIDTH = 28, 14, 16
SPECIALS = ("<pad>", "<s>", "</s>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 300}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
TOWER |= {"num_attention_heads": 2, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}

Tiny = tuple[Any, Any, Features]
"""Processor, model, and the features of all pictures."""


def _picture(seed: int, *asked: tuple[str, str]) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    questions = tuple(Question("any", text, answer) for text, answer in asked)
    return Picture(lambda: Image.fromarray(pixels.numpy()), questions, str(seed))


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    return [
        _picture(0, ("What is it?", "a dog"), ("How many are there, then?", "4"), ("Where?", "on")),
        _picture(1, ("Is it red?", "no")),
        _picture(2, ("What colour?", "blue"), ("And that?", "green")),
    ]


@pytest.fixture
def make_tiny(tmp_path: Path, pictures: list[Picture]) -> Callable[[str], Tiny]:
    """The same model anew; the name is of its file of features."""

    def make(name: str) -> Tiny:
        model, processor = _model(), _processor()
        features = Features(tmp_path / name, len(pictures), (SIDE // PATCH) ** 2, WIDTH)
        list(features.fill(model, processor, pictures))
        return processor, model, features

    return make


def _model() -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        vision_config=TOWER,
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=True),
        image_token_id=SPECIALS.index("<IMG_CONTEXT>"),
        downsample_ratio=1.0,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config).eval()
    checkpoint.randomise(model)
    model.tie_weights()
    return model


def _processor() -> InternVLProcessor:
    tokenizer = checkpoint.tokenizer(
        SPECIALS,
        TEXT["vocab_size"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    side = {"height": SIDE, "width": SIDE}
    images = GotOcr2ImageProcessorPil(
        size=side, crop_to_patches=False, min_patches=1, max_patches=1
    )
    videos = InternVLVideoProcessor(size=side, do_sample_frames=False)
    return InternVLProcessor(
        images,
        tokenizer,
        videos,
        image_seq_length=(SIDE // PATCH) ** 2,
        chat_template=TEMPLATE,
    )
