"""Attention probabilities as scores."""

import torch

from vtr_vllm.ranking.inputs import Attention, RankInputs

TILE_BYTES = 64 << 20
"""Of the logits that are held at a time, and of their probabilities: twice this, and ``CHUNK`` keys in
float32, is what a ranking takes. One query's logits are always held at once: heads x keys x 4 bytes."""
CHUNK = 8192
"""Keys that are in float32 at a time."""


def attention_received(
    inputs: RankInputs,
    attention: Attention,
    queries: int,
    heads: str,
    tile_bytes: int = TILE_BYTES,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Attention that each row gets from the last ``queries`` prompt rows; [rows] float32.

    The true probabilities: softmax over every key that a query sees, text, cached prefix and
    vision alike. Normalising over vision tokens alone would let heads that look elsewhere vote as
    loudly. ``heads`` are merged per query (mean or max), then the queries are averaged. Queries are
    taken in tiles: an instruction may be thousands of tokens long.
    """
    end = inputs.prompt_rows
    key = attention.key[: attention.prefix + end]
    floats = attention.floats(key, 0) if len(key) <= chunk else None
    kv_heads = key.shape[1]
    # The same on all tensor-parallel ranks, which have equally many heads: each tile is merged.
    tile = max(1, tile_bytes // (4 * attention.query.shape[1] * len(key)))
    received = torch.zeros(len(key), device=key.device)
    for first in range(end - queries, end, tile):
        last = min(first + tile, end)
        seen = attention.prefix + last
        query = attention.floats(attention.query[first:last], attention.prefix + first)
        query = query.unflatten(1, (kv_heads, -1)) * attention.scale
        if floats is not None:
            logits = torch.einsum("qhgd,khd->hgqk", query, floats[:seen])
        else:
            logits = query.new_empty(*query.shape[1:3], len(query), seen)
            for begin in range(0, seen, chunk):
                part = attention.floats(key[begin : min(begin + chunk, seen)], begin)
                logits[..., begin : begin + chunk] = torch.einsum("qhgd,khd->hgqk", query, part)
        if last - first > 1:
            # Query i stands ``last - first - 1 - i`` places before the last: it sees no later key.
            hidden = torch.ones(last - first, seen, dtype=torch.bool, device=key.device)
            logits.masked_fill_(hidden.triu(seen - (last - first) + 1), -torch.inf)
        probability = logits.softmax(-1)
        merged = probability.amax((0, 1)) if heads == "max" else probability.mean((0, 1))
        received[:seen] += attention.combine(merged, heads).sum(0)
    scores = received.new_zeros(len(inputs.vision))
    scores[:end] = received[attention.prefix :] / queries
    return scores
