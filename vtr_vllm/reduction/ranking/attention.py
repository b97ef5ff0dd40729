"""Attention probabilities as scores: the part that ``last`` and ``instruction`` share."""

import torch

from vtr_vllm.reduction.ranking.inputs import RankInputs


def attention_received(inputs: RankInputs, queries: int, heads: str) -> torch.Tensor:
    """Attention that each row gets from the last ``queries`` prompt rows; [rows] float32.

    The true probabilities: softmax over every key that a query sees, text, cached prefix and
    vision alike. Normalising over vision tokens alone would let heads that look elsewhere vote as
    loudly. ``heads`` are merged per query (mean or max), then the queries are averaged.
    """
    attention = inputs.attention
    assert attention is not None
    end = inputs.prompt_rows
    query = attention.query[end - queries : end].float()
    key = attention.key[: attention.prefix + end].float()
    kv_heads = key.shape[1]
    grouped = query.unflatten(1, (kv_heads, -1))
    logits = torch.einsum("qhgd,khd->hgqk", grouped, key) * attention.scale
    if queries > 1:
        # Query i stands ``queries - 1 - i`` places before the last key: it does not see later ones.
        hidden = torch.ones(queries, key.shape[0], dtype=torch.bool, device=key.device)
        logits.masked_fill_(hidden.triu(key.shape[0] - queries + 1), -torch.inf)
    probability = logits.softmax(-1)
    merged = probability.amax((0, 1)) if heads == "max" else probability.mean((0, 1))
    received = attention.combine(merged, heads).mean(0)
    scores = received.new_zeros(len(inputs.vision))
    scores[:end] = received[attention.prefix :]
    return scores
