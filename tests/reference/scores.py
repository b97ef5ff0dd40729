"""The ranking rules, written from their definitions."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import torch
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


def attention_scores(layer: Layer, readers: Tensor, seen: Tensor, options: list[str]) -> Tensor:
    """Return how much the tokens at positions ``readers`` look at those at ``seen``, ``[seen]``.

    Heads are aggregated per reader (mean, or ``max``), readers averaged.
    """
    unknown = set(options) - {"norope", "max"}
    if unknown or not len(readers):
        raise ValueError(f"options {options}, {len(readers)} reading tokens")
    matrix = layer.probabilities(rope="norope" not in options)
    matrix = matrix[:, torch.isin(layer.positions, readers)]
    matrix = matrix[:, :, torch.isin(layer.positions, seen)]
    heads = matrix.amax(0) if "max" in options else matrix.mean(0)
    return heads.mean(0)


def median_distance(features: Tensor) -> Tensor:
    """Return each token's distance from the median of its image: ``[n, hidden]`` to ``[n]``."""
    return (features - features.median(0).values).norm(dim=-1)


def random_scores(prompt_token_ids: list[int], n: int) -> Tensor:
    """Return ``n`` uniform scores drawn by the prompt: the same prompt, the same scores."""
    seed = zlib.crc32(np.asarray(prompt_token_ids, dtype="<i8").tobytes())
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


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
