"""What rank rules are given in tests: two uneven images with text around them."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.vtr_vllm.ranking.by_itself import Attention, Given

ROWS, INSTRUCTION = 20, 4
IMAGES = [[7, 8, 9], [11, 12, 13, 14, 15]]
PREFIX = 6
"""Text rows that may be in the cache."""
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
_PLACES = [place for image in IMAGES for place in image]
VISION = [_PLACES.index(row) if row in _PLACES else -1 for row in range(ROWS)]


def alone(merged: torch.Tensor, heads: str) -> torch.Tensor:
    return merged


def inputs(generated: int = 0, prefix: int = 0, seed: int = 0) -> Given:
    """All rows of the prompt from ``prefix`` on, and generated rows behind it."""
    draw = torch.Generator().manual_seed(seed)
    rotated, plain = (attention(draw, generated, prefix) for _ in range(2))
    return Given(
        vision=torch.tensor(VISION[prefix:] + [-1] * generated),
        prompt_rows=ROWS - prefix,
        instruction_rows=INSTRUCTION,
        image_sizes=[len(image) for image in IMAGES],
        vision_rows=8,
        seeds=[11 + seed, 12 + seed],
        grids=[None, None],
        attention=replace(rotated, unrotated=lambda: plain),
        embeddings=torch.randn(8, 16, generator=draw),
        states=torch.randn(ROWS, 16, generator=draw)[rows_there(generated, prefix)],
        cls_attention=torch.rand(8, generator=draw),
        previous=torch.rand(8, generator=draw),
    )


def rows_there(generated: int, prefix: int) -> list[int]:
    """Which rows of the prompt stand in each row; generated ones repeat the last."""
    return [*range(prefix, ROWS), *[ROWS - 1] * generated]


def attention(draw: torch.Generator, generated: int, prefix: int) -> Attention:
    query = torch.randn(ROWS, HEADS, HEAD_DIM, generator=draw)
    key = torch.randn(ROWS, KV_HEADS, HEAD_DIM, generator=draw)
    own = torch.Generator().manual_seed(1000 + generated)
    more_query = 9 * torch.randn(generated, HEADS, HEAD_DIM, generator=own)
    more_key = 9 * torch.randn(generated, KV_HEADS, HEAD_DIM, generator=own)
    made = Attention(
        query=torch.cat([query[prefix:], more_query]),
        key=torch.cat([key, more_key]),
        prefix=prefix,
        scale=0.3,
        combine=alone,
        unrotated=lambda: made,
    )
    return made


def at_rows(given: Given, left: torch.Tensor) -> Given:
    """``given`` once an earlier cut left only the rows ``left``; of prompts without a prefix."""
    rotated = given.attention
    plain = rotated.unrotated()
    kept = [replace(a, query=a.query[left], key=a.key[left]) for a in (rotated, plain)]
    return replace(
        given,
        vision=given.vision[left],
        prompt_rows=len(left),
        vision_rows=int((given.vision[left] >= 0).sum()),
        states=given.states[left],
        attention=replace(kept[0], unrotated=lambda: kept[1]),
    )


def at_tokens(scores: torch.Tensor, given: Given) -> torch.Tensor:
    """[n_vision] scores, in the order of the tokens."""
    return scores[given.vision >= 0]
