"""The models that are measured, and what their forward passes cost.

``demo`` is the trained demo checkpoint. ``half-b`` and ``llava-7b`` have real sizes and dummy
weights: how fast a model runs does not depend on what it says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.tiny import TinyShape, write_model_files
from vtr_vllm import demo
from vtr_vllm.schedules import ModelGeometry

# One token a byte, so about 30 text tokens: a short question to LLaVA-1.5 without a system prompt.
QUESTION = "What is this?"
DUMMY_PROMPT = f"USER: <image>\n{QUESTION} ASSISTANT:"
FOLLOW_UP = " USER: And what is behind it? ASSISTANT:"
LLAVA_7B_TOWER_SHARE = 0.041
"""Tower's share of LLaVA-1.5-7B's prefill FLOPs: CLIP-L/14 at 336 px, 640 tokens."""


class UnsupportedDevice(RuntimeError):
    """The shape cannot be measured on this machine."""


@dataclass(frozen=True)
class Shape:
    """One model to measure, and the engine settings that both arms get."""

    name: str
    model: Path
    load_format: str
    dtype: str
    output_tokens: int
    max_model_len: int
    max_num_batched_tokens: int

    def engine_args(self, eager: bool) -> dict[str, object]:
        """Return the engine arguments that stock vLLM and VTR share."""
        return {
            "model": str(self.model),
            "load_format": self.load_format,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_num_seqs": 32,
            "block_size": 32,
            "enforce_eager": eager,
            "enable_prefix_caching": True,
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": {"image": 1},
            "disable_log_stats": True,
        }

    @property
    def config(self) -> dict:
        """The checkpoint's ``config.json``."""
        return json.loads((self.model / "config.json").read_text())

    @property
    def geometry(self) -> ModelGeometry:
        """The decoder's sizes."""
        return ModelGeometry.from_config(self.config["text_config"])

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of one image."""
        vision = self.config["vision_config"]
        return (vision["image_size"] // vision["patch_size"]) ** 2


SIZES = {
    "half-b": TinyShape(
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        head_dim=64,
        mlp=4864,
        vocab=32000,
        image=336,
        patch=14,
        tower_layers=16,
        tower_hidden=256,
        tower_heads=4,
        tower_mlp=1024,
    ),
    "llava-7b": TinyShape(
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp=11008,
        vocab=32000,
        image=336,
        patch=14,
        tower_layers=24,
        tower_hidden=1024,
        tower_heads=16,
        tower_mlp=4096,
    ),
}
NAMES = ("demo", *SIZES)


def default_dtype() -> str:
    """Return the type of dummy weights: bf16, unless this CPU has no instructions for it.

    Without AVX-512 a CPU emulates bf16, many times slower than fp32.
    """
    if torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"


def make_shape(
    name: str, scratch: Path, checkpoint: Path | None, has_gpu: bool, dtype: str | None = None
) -> Shape:
    """Return the shape ``name``; dummy checkpoints are written under ``scratch``.

    Raises UnsupportedDevice for a shape that only a GPU can run, FileNotFoundError when the
    demo checkpoint is not there.
    """
    if name == "demo":
        folder = checkpoint or demo.CHECKPOINT
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"no checkpoint in {folder}; name one with --checkpoint")
        return Shape("demo", folder, "auto", dtype or default_dtype(), 8, 1024, 8192)
    if name == "llava-7b" and not has_gpu:
        raise UnsupportedDevice("the llava-7b shape needs a GPU; on a CPU measure half-b")
    folder = scratch / name
    dtype = dtype or default_dtype()
    write_model_files(folder, SIZES[name], dtype)
    return Shape(name, folder, "dummy", dtype, 32, 1024, 8192)


def make_request(name: str, config: dict, index: int) -> dict[str, object]:
    """Return prompt and image number ``index``: never twice the same image, so nothing is cached."""
    if name == "demo":
        sample = demo.sample("test", index)
        return {
            "prompt": demo.prompt(sample.question),
            "multi_modal_data": {"image": sample.image},
        }
    size = config["vision_config"]["image_size"]
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return {"prompt": DUMMY_PROMPT, "multi_modal_data": {"image": Image.fromarray(pixels)}}


def tower_flops(config: dict) -> int:
    """Return the multiply-adds of tower and projector for one image.

    Per layer, with t tokens (patches and CLS), width d, MLP width m: 4 t d^2 + 2 t^2 d + 2 t d m.
    Layers behind the one whose features are read do not run.
    """
    vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    t, d, m = patches + 1, vision["hidden_size"], vision["intermediate_size"]
    depth, feature = vision["num_hidden_layers"], config["vision_feature_layer"]
    layers = feature if feature >= 0 else depth + 1 + feature
    embed = patches * d * 3 * vision["patch_size"] ** 2
    project = patches * (d * hidden + hidden * hidden)
    return embed + layers * (4 * t * d * d + 2 * t * t * d + 2 * t * d * m) + project
