"""The models that are measured, and the engine settings that both arms get.

``demo`` and ``photo`` are the trained checkpoints of this project. The others have real sizes and dummy weights: how fast a
model runs does not depend on what it says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import towers
from benchmarks.dummies import DUMMIES
from vtr_vllm import demo
from vtr_vllm.own_models import OWN_MODELS
from vtr_vllm.photo.parts import SIDE
from vtr_vllm.schedules import ModelGeometry

FOLLOW_UP = " USER: And what is behind it? ASSISTANT:"

PHOTO_PROMPT = (
    "<|im_start|>user\n<IMG_CONTEXT>What is in the picture?<|im_end|>\n<|im_start|>assistant\n"
)

FORMS = ("talk", "images", "questions")
"""Of what follows a first question: more questions, each with all before it; the same, each about an image of
its own; other questions about the first image, each by itself."""


LONG_FORMS = ("videos", "images")
FRAME_SIDE = 504
"""Pixels of a frame: 324 vision tokens of two frames."""
CLIP = 25
"""Temporal patches of a video, two frames each: vLLM's encoder cache takes no more in one item."""


WORDS = ("left", "right", "above", "below", "near", "far", "red", "blue")


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
    image_side: int
    """Pixels of the square images that requests bring."""
    tower_share: float | None = None
    """What the tower should take of the prefill FLOPs, with 64 text tokens; None: it is what it is."""

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
            "limit_mm_per_prompt": {"image": 8},
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
        return towers.vision_tokens(self.config, self.image_side)

    @property
    def tower_flops(self) -> int:
        """Multiply-adds of tower and projector for one image."""
        return towers.tower_flops(self.config, self.image_side)


NAMES = ("demo", "photo", *DUMMIES)
ON_A_CPU = ("demo", *(n for n, dummy in DUMMIES.items() if dummy.tower_share and not dummy.gpu))


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

    ``checkpoint``: of the demo, in the place of the packaged one. Raises UnsupportedDevice for a shape
    that only a GPU can run, FileNotFoundError when a trained checkpoint is not there.
    """
    own = OWN_MODELS.get(name)
    if own is not None:
        folder = (checkpoint if name == "demo" else None) or own.checkpoint
        if not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"no checkpoint in {folder}; run `{own.made_by}`, or name one with --checkpoint"
            )
        shape = Shape(name, folder, "auto", dtype or default_dtype(), 8, 1024, 8192, 0)
        return replace(shape, image_side=_side(shape.config["vision_config"]["image_size"]))
    dummy = DUMMIES[name]
    if dummy.gpu and not has_gpu:
        raise UnsupportedDevice(f"{name} needs a GPU; on a CPU there are {', '.join(ON_A_CPU)}")
    folder = scratch / name
    dtype = dtype or default_dtype()
    dummy.write(folder, dtype)
    return Shape(
        name=name,
        model=folder,
        load_format="dummy",
        dtype=dtype,
        output_tokens=32,
        max_model_len=dummy.max_model_len,
        max_num_batched_tokens=8192,
        image_side=dummy.image_side,
        tower_share=dummy.tower_share,
    )


def _side(image_size: int | list[int]) -> int:
    """Pixels of a square image's side, which some families note as height and width."""
    return image_size if isinstance(image_size, int) else image_size[0]


def make_request(name: str, index: int) -> dict[str, Any]:
    """Return prompt and image number ``index``: never twice the same image, so nothing is cached."""
    if name == "demo":
        sample = demo.sample("test", index)
        return {
            "prompt": demo.prompt(sample.question),
            "multi_modal_data": {"image": sample.image},
        }
    if name == "photo":
        prompt, side = PHOTO_PROMPT, SIDE
    else:
        prompt, side = DUMMIES[name].prompt, DUMMIES[name].image_side
    pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(pixels)}}


def follow_up(
    name: str, form: str, request: dict[str, Any], answer: str, index: int, turn: int
) -> dict[str, Any]:
    """Return the next turn's prompt and images, of one of ``FORMS``; ``request`` is the last turn's."""
    if form == "questions":
        first = make_request(name, index)
        return first | {"prompt": f"{first['prompt']} And {WORDS[turn % len(WORDS)]}? ASSISTANT:"}
    if form == "talk":
        return request | {"prompt": f"{request['prompt']}{answer}{FOLLOW_UP}"}
    fresh = make_request(name, 1_000_003 * turn + index)["multi_modal_data"]["image"]
    images = request["multi_modal_data"]["image"]
    images = [*(images if isinstance(images, list) else [images]), fresh]
    asked = FOLLOW_UP.replace("USER:", f"USER: {DUMMIES[name].image_prompt}")
    return {
        "prompt": f"{request['prompt']}{answer}{asked}",
        "multi_modal_data": {"image": images},
    }


def make_long_request(name: str, form: str, count: int, index: int) -> dict[str, Any]:
    """Return a prompt of one of ``LONG_FORMS``: ``count`` temporal patches of videos, or images."""
    dummy, rng = DUMMIES[name], np.random.default_rng(1_000_003 * index + len(form))
    if form == "images":
        size = (count, dummy.image_side, dummy.image_side, 3)
        images = [Image.fromarray(pixels) for pixels in rng.integers(0, 256, size, dtype=np.uint8)]
        prompt = dummy.prompt.replace(dummy.image_prompt, dummy.image_prompt * count)
        return {"prompt": prompt, "multi_modal_data": {"image": images}}
    clips = [min(CLIP, count - first) for first in range(0, count, CLIP)]
    video = dummy.image_prompt.replace("image_pad", "video_pad")
    prompt = dummy.prompt.replace(dummy.image_prompt, video * len(clips))
    return {"prompt": prompt, "multi_modal_data": {"video": [_clip(rng, n) for n in clips]}}


def _clip(rng: np.random.Generator, patches: int) -> tuple[np.ndarray, dict[str, Any]]:
    frames = rng.integers(0, 256, (2 * patches, FRAME_SIDE, FRAME_SIDE, 3), dtype=np.uint8)
    facts = {
        "fps": 2.0,
        "duration": float(patches),
        "total_num_frames": len(frames),
        "frames_indices": list(range(len(frames))),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return frames, facts


def long_request_cost(shape: Shape, form: str, count: int) -> tuple[int, int]:
    """Return (vision tokens, multiply-adds of the tower) of a prompt of ``make_long_request``."""
    side = shape.image_side if form == "images" else FRAME_SIDE
    config = shape.config
    return (
        count * towers.vision_tokens(config, side),
        count * towers.tower_flops(config, side),
    )
