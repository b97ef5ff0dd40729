"""What phase 1 teaches the projector: each vision token to be the words for what it shows, and where.

The decoder does not run. It reads what its own word embeddings would say, which a pre-trained one can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtr_vllm.photo.scenes import PLACES, Thing, place_of
from vtr_vllm.training.photo.pictures import Picture

__all__ = ["Naming"]

_HEAT = 16.0
"""By which cosines are multiplied before a softmax over words."""
_NOTHING = "background"
_PLACE_SHARE, _SIZE_SHARE = 0.5, 0.1
"""Of the loss of places, and of that of lengths, beside the loss of names."""


class Naming:
    """The words of a training's scenes, in the decoder's embeddings."""

    def __init__(self, tokenizer: Any, embeddings: Tensor, pictures: Sequence[Picture]) -> None:
        """``embeddings``: ``[vocabulary, hidden]``."""
        self._middle = embeddings.mean(0)
        self._length = (embeddings - self._middle).norm(dim=-1).mean()

        def directions(words: Sequence[str]) -> Tensor:
            ids = [tokenizer(" " + word, add_special_tokens=False).input_ids for word in words]
            found = torch.stack([embeddings[i].mean(0) for i in ids]) - self._middle
            return functional.normalize(found, dim=-1)

        known = sorted({thing.name for picture in pictures for thing in picture.things})
        self._number = {name: i for i, name in enumerate([_NOTHING, *known])}
        self._names, self._places = directions([_NOTHING, *known]), directions(PLACES)

    def loss(
        self, projector: nn.Module, states: Sequence[Tensor], shown: Sequence[Sequence[Thing]]
    ) -> Tensor:
        """Cross entropy of each token's name and place, and of the name of each object's mean token.

        ``states``: the tower's, each ``[N, width]``; ``shown``: what stands where in each picture.
        """
        seen = projector(torch.cat(list(states))) - self._middle
        tokens = len(states[0])
        names = torch.zeros(len(seen), dtype=torch.long)
        means, named = [], []
        for first, things in zip(range(0, len(seen), tokens), shown, strict=True):
            for thing in things:
                rows = torch.tensor(thing.patches()) + first
                names[rows] = self._number[thing.name]
                means.append(seen[rows].mean(0))
                named.append(self._number[thing.name])
        places = torch.tensor([place_of(token) for token in range(tokens)]).repeat(len(states))
        size = (seen.norm(dim=-1) / self._length - 1).square().mean()
        return (
            _entropy(torch.stack(means), self._names, torch.tensor(named))
            + _entropy(seen, self._names, names)
            + _PLACE_SHARE * _entropy(seen, self._places, places)
            + _SIZE_SHARE * size
        )


def _entropy(seen: Tensor, words: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(_HEAT * functional.normalize(seen, dim=-1) @ words.T, wanted)
