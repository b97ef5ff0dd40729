"""Where the vision tokens of each image of a prompt are: what a picture of them needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.multimodal.inputs import MultiModalFeatureSpec

from vtr_vllm.engine.requests import vision_spans

_ONE_SIZE = ("clip_vision_model", "siglip_vision_model")
"""Towers to which every image is scaled and cropped."""


@dataclass(frozen=True)
class ImageTokens:
    """The vision tokens of one image, as numbers among all vision tokens of the prompt."""

    first: int
    tokens: int
    grid: tuple[int, int] | None
    """(rows, columns) of patches, tokens in reading order; None where there is no such grid."""


def image_tokens(
    features: Sequence[MultiModalFeatureSpec], hf_config: Any
) -> tuple[ImageTokens, ...]:
    """The images, or other multimodal items, of a prompt in prompt order."""
    images = []
    first = 0
    for span in vision_spans(features):
        images.append(ImageTokens(first, len(span), _grid(len(span), hf_config)))
        first += len(span)
    return tuple(images)


def _grid(tokens: int, hf_config: Any) -> tuple[int, int] | None:
    """A tower of one image size cuts every image into the same square of patches."""
    tower = getattr(hf_config, "vision_config", None)
    if getattr(tower, "model_type", None) not in _ONE_SIZE:
        return None
    side = tower.image_size // tower.patch_size
    return (side, side) if side * side == tokens else None
