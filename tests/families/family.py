"""What the tests must know of a model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText


@dataclass(frozen=True)
class LanguageModel:
    """The decoder of a checkpoint as Transformers runs it: fp32, eager attention."""

    model: nn.Module
    """Has ``.layers`` and ``.norm``; takes ``inputs_embeds`` and ``position_ids``."""
    lm_head: Tensor
    """[vocab, hidden]"""


def language_model(folder: Path) -> LanguageModel:
    """The decoder of a checkpoint that Transformers loads by itself."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return LanguageModel(model.model.language_model, model.lm_head.weight)


@dataclass(frozen=True)
class Family:
    """One family: how to make a tiny model of it, and what a prompt of it looks like."""

    name: str
    """As people call it: "qwen2.5-vl"."""
    architecture: str
    """vLLM's registry name."""
    decoder: str
    """vLLM's class of the decoder: "Qwen2Model"."""
    tower: str
    """What sees the image, for docs/models.md: "CLIP"."""
    hub: tuple[str, ...]
    """Names on the hub that people serve, for docs/models.md."""
    write: Callable[[Path], None]
    """Writes a tiny checkpoint into an existing folder: seconds at most, a few MB."""
    image: str
    """One image in a raw prompt."""
    video: str | None = None
    """One video in a raw prompt, where the family has them."""
    language_model: Callable[[Path], LanguageModel] = language_model
    """The decoder for the reference, from the checkpoint that ``write`` wrote."""
    sizes: tuple[tuple[int, int], ...] = ((112, 112), (168, 84), (56, 112))
    """Width and height of the three images of the tests, pixels; tens to ~150 tokens each."""
    frames: int = 4
    """Frames of the tests' video, of the size of the first image."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``vllm.LLM``."""
    quick: bool = False
    """Whether it also runs in the default test run."""
