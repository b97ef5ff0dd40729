"""Rows of the residual stream for the rules that look at them, and the order that comes of them."""

from __future__ import annotations

import torch

from vtr_vllm.ranking.images import ImageInputs


def images(states):
    """Of ``states`` [U, n, hidden]: no token has been dropped."""
    count, tokens, _ = states.shape
    return ImageInputs(
        tokens=torch.arange(tokens).expand(count, -1),
        size=tokens,
        grid=None,
        seeds=range(count),
        states=states,
    )


def orders(rule, states):
    """[U] lists of tokens, the best first."""
    scores = rule.score_images(images(states))
    places = torch.arange(states.shape[1], dtype=torch.float32)
    assert torch.equal((-scores).sort(1).values, places.expand_as(scores))
    return scores.argsort(1, descending=True).tolist()


def clustered(tokens, hidden, clusters, noise, seed=0):
    """[tokens, hidden] around centres of uneven length and weight, with a part common to all."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, hidden, generator=draw)
    centres *= 3 * torch.rand(clusters, 1, generator=draw)
    weights = torch.rand(clusters, generator=draw) ** 3
    own = torch.multinomial(weights, tokens, True, generator=draw)
    common = torch.randn(hidden, generator=draw)
    return centres[own] + common + noise * torch.randn(tokens, hidden, generator=draw)
