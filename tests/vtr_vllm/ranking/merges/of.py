"""A merge of few tokens, as the engine does it."""

from __future__ import annotations

import torch

from vtr_vllm.ranking.merge import MergeInputs, merges


def merged(name, likeness, kept, dropped, kept_scores=None, dropped_scores=None):
    """Kept tokens [K] (numbers) with ``dropped`` [D] merged in, by ``likeness`` [K][D]."""
    found = merges()[name]
    inputs = MergeInputs(
        likeness=torch.tensor([likeness]),
        dropped_scores=torch.tensor([dropped_scores or [1.0] * len(dropped)]),
        first=0,
        dropped=len(dropped),
    )
    scores = torch.tensor([kept_scores or [1.0] * len(kept)])
    weights, own = found.weights(inputs)[0], found.own(scores)[0]
    total = own * torch.tensor(kept) + weights @ torch.tensor(dropped)
    return (total / (own + weights.sum(-1)) if found.is_mean else total).tolist()
