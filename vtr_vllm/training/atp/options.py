"""What a training of ATP modules can be asked: the flags of ``vtr train atp``."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.training.options import TrainingOptions

__all__ = ["AtpOptions", "cut_layers", "default_layers"]

DEPTHS = (0.125, 0.4375, 0.75)
"""Where the paper's layers 4, 14 and 24 of 32 are, as shares of the depth."""


def _rising(layers: list[int]) -> list[int]:
    if any(low >= high for low, high in itertools.pairwise(layers)):
        raise ValueError("the layers must rise")
    return layers


class AtpOptions(TrainingOptions):
    """One training of ATP's modules; what is left out takes its default."""

    target: float = Field(gt=0, lt=1, description="mean keep rate over all layers and instances")
    layers: Annotated[list[int], Field(max_length=64), AfterValidator(_rising)] = Field(
        default=[],
        description="decoder layers before which tokens are dropped, from 1; left out, at .125,"
        " .4375 and .75 of the depth",
    )
    lambda_atp: float = Field(
        default=0.01, ge=0, description="weight of depth-weighted kept tokens"
    )
    lambda_target: float = Field(
        default=4.0,
        ge=0,
        description="weight of the distance from the target, as a share of tokens",
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="of the modules, after warm-up"
    )
    features: Literal["question", "scores"] = Field(
        default="question",
        description="what sets the thresholds: the scores alone, or the question's state too",
    )
    mask: Literal["soft", "straight-through"] = Field(
        default="soft", description="what later layers see in training"
    )
    temperature: float = Field(default=10.0, gt=0, le=1e4, description="of the soft mask, at first")
    final_temperature: float = Field(
        default=50.0, gt=0, le=1e4, description="of the soft mask, at the last step"
    )
    n_min: int = Field(default=1, ge=1, le=1_000_000, description="fewest tokens that a cut leaves")
    lora: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="rank of LoRA on the decoder; left out, it is frozen",
    )
    lora_rate: float = Field(
        default=2e-5, gt=0, le=1, description="learning rate of LoRA's weights"
    )


def default_layers(depth: int) -> tuple[int, ...]:
    """The layers of the paper, by depth; for very few layers fewer cuts."""
    found = {max(1, round(share * depth)) for share in DEPTHS}
    return tuple(sorted(layer for layer in found if layer < depth))


def cut_layers(options: AtpOptions, depth: int) -> tuple[int, ...]:
    """The layers before which a decoder of ``depth`` drops tokens; raises ConfigurationError.

    Layers before the first run in full, so that the target must lie above their share.
    """
    layers: Sequence[int] = options.layers or default_layers(depth)
    if not layers or not 1 <= layers[0] <= layers[-1] < depth:
        raise ConfigurationError(
            f"--layers {','.join(map(str, layers))} of a decoder of {depth} layers; allowed are 1 to"
            f" {depth - 1}: a cut is decided by the layer before it"
        )
    least = layers[0] / depth
    if options.target <= least:
        raise ConfigurationError(
            f"--target {options.target:g} cannot be met: {layers[0]} of {depth} layers run in full"
            f" before the first cut, which is {least:.4g} already; raise the target, or begin --layers"
            " earlier"
        )
    return tuple(layers)
