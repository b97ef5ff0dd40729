"""Write a trained demo model as a Hugging Face folder: weights, processor, chat template."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vtr_vllm.demo.tokenizer import BOS, CHAT_TEMPLATE, EOS, IDS, IMAGE, PAD, build_tokenizer
from vtr_vllm.demo.world import IMAGE_SIDE, PATCH_SIDE


def build_processor() -> LlavaProcessor:
    """Return the processor: CLIP's normalisation, the word tokenizer, the chat template."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which is dropped again
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def export(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write ``model`` to ``folder`` with bfloat16 weights; the model itself stays as it is.

    Files of the same names are replaced, others (the model card) left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
        pad_token_id=IDS[PAD],
        do_sample=False,
        max_new_tokens=4,
    )
    rounded.save_pretrained(folder)
    use_classic_names(folder / "model.safetensors")
    build_processor().save_pretrained(folder)


def use_classic_names(weights: Path) -> None:
    """Give the tower's tensors the names that LLaVA checkpoints have on the hub.

    transformers 5 leaves the level ``vision_model`` out when it saves and accepts both when it
    loads; vLLM's loader knows only the names with it.
    """
    short, classic = "vision_tower.", "vision_tower.vision_model."
    tensors = {}
    for name, tensor in load_file(weights).items():
        if name.startswith(short) and not name.startswith(classic):
            name = classic + name.removeprefix(short)
        tensors[name] = tensor
    save_file(tensors, weights, metadata={"format": "pt"})
