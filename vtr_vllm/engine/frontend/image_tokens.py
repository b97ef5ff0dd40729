"""Where the vision tokens of each image of a prompt are: what a picture of them needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.multimodal.inputs import MultiModalFeatureSpec

from vtr_vllm.engine.common.request_view import vision_items, vision_span
from vtr_vllm.engine.frontend.sender_cache import patch_grid

_ONE_SIZE = ("clip_vision_model", "siglip_vision_model")
"""Towers to which every image is scaled and cropped."""
_ANY_SIZE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Models that cut an image into as many patches as it has room for, merge them in squares, and hand
these on row by row."""


@dataclass(frozen=True)
class ImageTokens:
    """The vision tokens of one image, as numbers among all vision tokens of the prompt."""

    first: int
    tokens: int
    grid: tuple[int, int] | None
    """(rows, columns) of tokens in reading order; None where there is no such grid."""
    frames: int = 1
    """Of a video, where ``grid`` is that of each; 1 also where they are not known."""

    @property
    def form(self) -> tuple[int, int, int]:
        """(frames, rows, columns), zeros where they are not known."""
        return (self.frames, *self.grid) if self.grid else (0, 0, 0)


def image_tokens(
    features: Sequence[MultiModalFeatureSpec], hf_config: Any, cache: Any = None
) -> tuple[ImageTokens, ...]:
    """The images and videos of a prompt in prompt order.

    ``cache`` is the renderer's: it knows the patches of an image that is not sent again.
    """
    images = []
    first = 0
    for feature in vision_items(features):
        tokens = len(vision_span(feature))
        frames, rows, columns = _form(feature, hf_config, cache)
        fits = frames * rows * columns == tokens
        grid = (rows, columns) if fits else None
        images.append(ImageTokens(first, tokens, grid, frames if fits else 1))
        first += tokens
    return tuple(images)


def _form(feature: MultiModalFeatureSpec, hf_config: Any, cache: Any) -> tuple[int, int, int]:
    """(frames, rows, columns) of an item's tokens, if these are all that the model makes of it."""
    tower = getattr(hf_config, "vision_config", None)
    if getattr(tower, "model_type", None) in _ONE_SIZE:
        side = tower.image_size // tower.patch_size
        return 1, side, side
    if getattr(hf_config, "model_type", None) in _ANY_SIZE:
        patches = patch_grid(feature, cache)
        if patches is not None:
            frames, rows, columns = patches
            return frames, rows // tower.spatial_merge_size, columns // tower.spatial_merge_size
    return 0, 0, 0
