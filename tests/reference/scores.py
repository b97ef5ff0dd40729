"""The ranking rules, written from their definitions."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass
class Layer:
    """Queries and keys of one decoder layer, ``[A, heads, head_dim]`` fp32; positions ``[A]``."""

    positions: Tensor
    queries: Tensor
    keys: Tensor
    plain_queries: Tensor
    """Before RoPE."""
    plain_keys: Tensor
    """Before RoPE."""

    def probabilities(self, rope: bool = True) -> Tensor:
        """Return the attention matrix ``[heads, A, A]``, causal by position."""
        queries = self.queries if rope else self.plain_queries
        keys = self.keys if rope else self.plain_keys
        logits = torch.einsum("qhd,khd->hqk", queries, keys) * queries.shape[-1] ** -0.5
        unseen = self.positions[None, :] > self.positions[:, None]
        return logits.masked_fill(unseen, float("-inf")).softmax(-1)


def attention_scores(
    layer: Layer, readers: Tensor, seen: Tensor, options: list[str], digits: str = ""
) -> Tensor:
    """Return how much the tokens at positions ``readers`` look at those at ``seen``, ``[seen]``.

    Heads are aggregated per reader (mean, or by ``digits``, or ``max``), readers averaged.
    """
    unknown = set(options) - {"norope", "max"}
    if unknown or not len(readers):
        raise ValueError(f"options {options}, {len(readers)} reading tokens")
    matrix = layer.probabilities(rope="norope" not in options)
    matrix = matrix[:, torch.isin(layer.positions, readers)]
    matrix = matrix[:, :, torch.isin(layer.positions, seen)]
    if digits:
        weights = torch.tensor([float(digit) for digit in digits])
        return torch.einsum("h,hqk->qk", weights / weights.sum(), matrix).mean(0)
    heads = matrix.amax(0) if "max" in options else matrix.mean(0)
    return heads.mean(0)


def self_scores(layer: Layer, image: Tensor, options: list[str]) -> Tensor:
    """Return how much an image's tokens at positions ``image`` get of its later ones, ``[image]``.

    The mean over those that see a token, itself among them; of more than 64 tokens, 64 look: evenly
    spaced, the last one among them.
    """
    count = min(64, len(image))
    looking = [(number + 1) * len(image) // count - 1 for number in range(count)]
    matrix = layer.probabilities(rope="norope" not in options)
    rows = torch.stack([(layer.positions == image[place]).nonzero()[0, 0] for place in looking])
    seen = torch.isin(layer.positions, image)
    heads = matrix[:, rows][:, :, seen]
    heads = heads.amax(0) if "max" in options else heads.mean(0)
    sees = torch.tensor(looking)[:, None] >= torch.arange(len(image))
    return (heads * sees).sum(0) / sees.sum(0)


def median_distance(features: Tensor) -> Tensor:
    """Return each token's distance from the median of its image: ``[n, hidden]`` to ``[n]``."""
    return (features - features.median(0).values).norm(dim=-1)


def image_id(image: Image.Image | Tensor) -> str:
    """A name of an image's pixels, or of its embeddings, under which vLLM is given it."""
    values = np.asarray(image)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def image_seed(image: Image.Image) -> int:
    """The seed of an image that is the first unit of what has its name."""
    return zlib.crc32(f"0 {image_id(image)}".encode())


def random_scores(seeds: list[int], sizes: list[int]) -> Tensor:
    """Return uniform scores of all images' tokens: the same image, the same scores."""
    return torch.cat(
        [
            torch.rand(size, generator=torch.Generator().manual_seed(seed))
            for seed, size in zip(seeds, sizes, strict=True)
        ]
    )


def floors(share: float, count: int, per_image: list[int]) -> list[int]:
    """Return the tokens that each of several images keeps for sure of ``count``.

    One each, and of the others ``share`` of the image's part, rounded down, where there is one for
    each. The share is what its decimals say.
    """
    if not share or count < len(per_image):
        return [0] * len(per_image)
    with localcontext(prec=1000):
        spare = Decimal(repr(share)) * (count - len(per_image))
        others = sum(per_image) - len(per_image)
        return [1 + int(spare * (size - 1) // others) if others else 1 for size in per_image]


def fewest_holding(ranked: list[float], share: float) -> int:
    """How many of the first of ``ranked``, in falling order, come to ``share`` of their sum."""
    wanted, held = share * math.fsum(ranked), 0.0
    for count, score in enumerate(ranked, 1):
        held += score
        if held >= wanted:
            return count
    return len(ranked)
