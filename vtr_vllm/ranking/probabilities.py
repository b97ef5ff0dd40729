"""Attention probabilities as scores."""

from collections.abc import Callable

import torch

TILE_BYTES = 64 << 20
"""Of the logits that are held at a time, and of their probabilities: twice this, and ``CHUNK`` keys in
float32, is what a ranking takes. One query's logits are always held at once: heads x keys x 4 bytes,
of each request that is ranked with it."""
BATCH_TILE_BYTES = 8 << 20
"""The same of several requests that are ranked together, where one alone could take less."""
CHUNK = 8192
"""Keys that are in float32 at a time."""

Floats = Callable[[torch.Tensor, int], torch.Tensor]
"""(a part of the vectors, place of its first) -> the same in float32, perhaps turned."""


def plain_floats(part: torch.Tensor, _place: int) -> torch.Tensor:
    """As they are."""
    return part.float()


def received_together(
    query: torch.Tensor,
    key: torch.Tensor,
    scale: float,
    heads: str,
    combine: Callable[[torch.Tensor, str], torch.Tensor],
    *,
    first: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    itself: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    share: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    queries_in_float: Floats = plain_floats,
    keys_in_float: Floats = plain_floats,
    tile_bytes: int = TILE_BYTES,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Attention that each key gets from the queries of its request; [C, K] float32.

    ``query`` [kv_heads, C, Q, heads of each, head_dim] and ``key`` [kv_heads, C, K, head_dim] of C
    requests. Query q of request c sees its keys from ``first`` [C] to ``last`` [C, Q], and counts as
    ``share`` [C, Q] of them; None: all keys, and all queries alike. What it gives the key ``itself`` [C, Q]
    does not count; None: it does. ``bias`` [C, K] is added for all queries: minus infinity where no key is
    seen. The two ``in_float`` get neighbours among Q or K.

    The true probabilities: softmax over every key that a query sees, text, cached prefix and
    vision alike. Normalising over vision tokens alone would let heads that look elsewhere vote as
    loudly. ``heads`` are merged per query (mean, of ``weights`` [heads], or max), then the queries are
    averaged. Queries are taken in tiles: an instruction may be thousands of tokens long.
    """
    kv_heads, requests, keys, _ = key.shape
    queries, each = query.shape[2:4]
    chunk = max(1, chunk // requests)
    turned = _turned(keys_in_float(key, 0)) if keys <= chunk else None
    # The same on all tensor-parallel ranks, which have equally many heads: each tile is merged.
    tile = max(1, tile_bytes // (4 * kv_heads * each * requests * keys))
    received = None
    for begin in range(0, queries, tile):
        asked = queries_in_float(query[:, :, begin : begin + tile], begin)
        asked = asked.reshape(kv_heads * requests, -1, query.shape[-1])
        if turned is not None:
            logits = _products(asked, turned, scale)
        else:
            logits = asked.new_empty(*asked.shape[:2], keys)
            for place in range(0, keys, chunk):
                part = _turned(keys_in_float(key[:, :, place : place + chunk], place))
                logits[..., place : place + chunk] = _products(asked, part, scale)
        logits = logits.view(kv_heads, requests, -1, each, keys)
        _hide(logits, bias, first, None if last is None else last[:, begin : begin + tile])
        merged = combine(_of_heads(logits.softmax(-1), heads, weights), heads)
        if itself is not None:
            merged = merged.scatter(-1, itself[:, begin : begin + tile, None].long(), 0.0)
        if share is not None:
            merged = merged * share[:, begin : begin + tile, None]
        part = merged.sum(1) if queries > 1 else merged[:, 0]
        received = part if received is None else received + part
    assert received is not None
    return received / queries if share is None and queries > 1 else received


def _hide(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    first: torch.Tensor | None,
    last: torch.Tensor | None,
) -> None:
    """Take from [kv_heads, C, q, heads of each, K] what is not seen."""
    if bias is not None:
        logits += bias[:, None, None]
    if first is not None or last is not None:
        hidden = _hidden(logits.shape[-1], first, last)
        logits.masked_fill_(hidden[:, :, None], -torch.inf)


def _of_heads(probability: torch.Tensor, heads: str, weights: torch.Tensor | None) -> torch.Tensor:
    """[C, Q, K] of [kv_heads, C, Q, heads of each, K], which ``weights`` may write over."""
    if weights is not None:
        probability *= weights.view(len(probability), 1, 1, -1, 1)
    return probability.amax((0, 3)) if heads == "max" else probability.mean((0, 3))


def _turned(keys: torch.Tensor) -> torch.Tensor:
    """[kv_heads, C, k, head_dim] as [kv_heads * C, head_dim, k]."""
    return keys.flatten(0, 1).mT


def _products(asked: torch.Tensor, turned: torch.Tensor, scale: float) -> torch.Tensor:
    # Only alpha counts of what is added to: one kernel scales and multiplies.
    return torch.baddbmm(turned.new_empty(1, 1, 1), asked, turned, beta=0, alpha=scale)


def _hidden(keys: int, first: torch.Tensor | None, last: torch.Tensor | None) -> torch.Tensor:
    """[C, 1 or Q, keys] whether a key is not seen; one of the two bounds is given."""
    bounds = first if last is None else last
    assert bounds is not None
    place = torch.arange(keys, device=bounds.device)
    before = None if first is None else place < first[:, None, None]
    if last is None:
        assert before is not None
        return before
    behind = place > last[:, :, None]
    return behind if before is None else behind | before
