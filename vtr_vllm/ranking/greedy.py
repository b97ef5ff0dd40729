"""Greedy orders of many tokens in few steps.

A greedy order takes one token after the other. Here the first ``EXACT`` are taken so; then blocks that
grow with what has been taken: of the tokens that add most, those that still do beside the better ones
of them. So the launches grow with the logarithm of the tokens, and whatever share of them is kept, it
was taken in blocks of at most a fifth of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch

EXACT = 16
"""Tokens that are taken one by one: smaller images are in exact greedy order."""
LARGEST_BLOCK = 512
"""Bounds what is held of candidates: their rows, and their products with one another."""
CANDIDATES = 4
"""Tokens that are looked at for each one of a block."""
ENOUGH = 0.5
"""Share of what any token outside of the candidates may add that one of them must add."""
PART_BYTES = 64 << 20
"""Of the states that are in float32 at a time, and what comes of them."""


class Greedy(ABC):
    """What tokens add to those that have been taken, of U images with n tokens each."""

    worth: torch.Tensor
    """[U, n] float32 what each token adds; 0: nothing, as far as float32 can tell."""

    @abstractmethod
    def beside_better(self, tokens: torch.Tensor) -> torch.Tensor:
        """What each of ``tokens`` [U, c], best first, adds once those before it were taken, too."""

    @abstractmethod
    def take(self, tokens: torch.Tensor, live: torch.Tensor) -> None:
        """Take ``tokens`` [U, b], best first, where ``live`` [U, b]; brings ``worth`` up to date."""


def blocks(most: int) -> Iterator[int]:
    """How many tokens are taken at a time, until ``most`` are."""
    taken = 0
    while taken < most:
        block = 1 if taken < EXACT else min(taken // 4, LARGEST_BLOCK, most - taken)
        yield block
        taken += block


def greedy_scores(greedy: Greedy, most: int) -> torch.Tensor:
    """[U, n] minus each token's place, of which up to ``most`` are found greedily.

    The others follow by what they add at the end, then by their number. A token that adds nothing is
    not taken: it waits for the end.
    """
    images, tokens = greedy.worth.shape
    numbers = torch.arange(tokens, device=greedy.worth.device, dtype=torch.float32)
    place = numbers.new_full((images, tokens), tokens)
    taken = 0
    for block in blocks(most):
        adds, found = _best(greedy, place, block, tokens - taken)
        live = adds > 0
        places = torch.where(live, numbers[taken : taken + block], tokens)
        place.scatter_(1, found, places)
        greedy.take(found, live)
        taken += block
    return scores_of_places(place, greedy.worth)


def scores_of_places(place: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
    """[U, n] minus each token's place: first those that have one in ``place`` [U, n], then those that
    have n, by their ``worth``, of equals the earlier."""
    tokens = place.shape[1]
    numbers = torch.arange(tokens, device=place.device, dtype=place.dtype).expand_as(place)
    rest = _waiting(place, worth).sort(dim=1, descending=True, stable=True).indices
    behind = torch.empty_like(place).scatter_(1, rest, numbers)
    order = torch.where(place < tokens, place, tokens + behind).argsort(1)
    return torch.empty_like(place).scatter_(1, order, -numbers)


def _waiting(place: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
    """What those that are not taken add; below zero for the others."""
    return worth.masked_fill(place < place.shape[1], -1.0)


def _best(
    greedy: Greedy, place: torch.Tensor, block: int, left: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[U, block] what the next ones add, and their tokens; at least ``left`` are not taken yet."""
    waiting = _waiting(place, greedy.worth)
    if block == 1:
        adds, found = waiting.max(1, keepdim=True)
        return adds, found
    # Stable, here and below: of equal ones the earlier, on every device.
    worth, ordered = waiting.sort(dim=1, descending=True, stable=True)
    candidates = min(CANDIDATES * block, left)
    ordered, bound = ordered[:, :candidates], worth[:, candidates - 1 : candidates]
    adds, best = greedy.beside_better(ordered).sort(dim=1, descending=True, stable=True)
    # Candidates may be much alike: then better ones wait outside, and these for the next block.
    adds = adds.masked_fill(adds < ENOUGH * bound, 0)
    return adds[:, :block], ordered.gather(1, best[:, :block])


class Rows:
    """States [U, n, hidden] in float32, a part at a time.

    Images are parted the same way whatever stands beside them.
    """

    def __init__(self, states: torch.Tensor, part_bytes: int = PART_BYTES) -> None:
        images, tokens, hidden = states.shape
        self._number = torch.arange(images, device=states.device)[:, None]
        together = max(1, part_bytes // (4 * hidden))
        self._images = max(1, together // tokens)
        self._groups = [group.split(together, 1) for group in states.split(self._images)]
        if len(self._groups) == len(self._groups[0]) == 1:
            states = states.float()
            self._groups = [(states,)]
        self._states = states

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        """[U, c, hidden] float32 rows of ``tokens`` [U, c]."""
        return self.of(self._states, tokens).float()

    def of(self, values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[U, c, ...] of ``values`` [U, n, ...] those of ``tokens`` [U, c]."""
        return values[self._number, tokens]

    def norms(self) -> torch.Tensor:
        """[U, n]"""
        return torch.linalg.vector_norm(self._states, dim=-1, dtype=torch.float32)

    def mean(self) -> torch.Tensor:
        """[U, 1, hidden]"""
        sums = [
            torch.stack([part.float().sum(1, keepdim=True) for part in group]).sum(0)
            for group in self._groups
        ]
        return torch.cat(sums) / self._states.shape[1]

    def times(
        self, vectors: torch.Tensor, then: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    ) -> torch.Tensor:
        """[U, n, ...] products of all rows with ``vectors`` [U, b, hidden], each part ``then``
        brought from [.., b] to what is to be held of it."""
        made = []
        for group, own in zip(self._groups, vectors.split(self._images), strict=True):
            parts = [then(torch.bmm(part.float(), own.mT)) for part in group]
            made.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return made[0] if len(made) == 1 else torch.cat(made)
