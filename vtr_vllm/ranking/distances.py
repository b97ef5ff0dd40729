"""How far each row is from those that have been taken."""

import torch

from vtr_vllm.ranking.greedy import EXACT, Greedy, Rows

RESOLUTION = 1e-5
"""Cosine distance below which rows count as one: what float32 cannot tell over thousands of numbers."""


class Distances(Greedy):
    """Cosine distance [U, n] to the nearest that was taken; at first, to the mean. Rows of zeros are at
    1 from all others."""

    def __init__(self, states: torch.Tensor) -> None:
        self.most = chosen_greedily(states.shape[1])
        self._rows = Rows(states)
        norms = self._rows.norms()
        self._scale = norms.reciprocal().masked_fill(norms == 0, 0)
        mean = torch.nn.functional.normalize(self._rows.mean(), dim=-1)
        self.worth = worth_of_the_first(self._likeness(mean))
        self._first = True

    def beside_better(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = self._directions(tokens)
        products = torch.bmm(rows, rows.mT)
        not_better = torch.ones_like(products[0], dtype=torch.bool).triu()
        nearest = products.masked_fill_(not_better, -torch.inf).amax(-1)
        return told_apart(torch.minimum(self.worth.gather(1, tokens), 1 - nearest))

    def take(self, tokens: torch.Tensor, live: torch.Tensor) -> None:
        # The best stands in for those that are not taken.
        directions = self._directions(torch.where(live, tokens, tokens[:, :1]))
        away = 1 - self._likeness(directions)
        self.worth = told_apart(away if self._first else torch.minimum(self.worth, away))
        self._first = False

    def _directions(self, tokens: torch.Tensor) -> torch.Tensor:
        """[U, c, hidden] rows of ``tokens`` [U, c], of length 1."""
        return self._rows.at(tokens) * self._scale.gather(1, tokens)[..., None]

    def _likeness(self, directions: torch.Tensor) -> torch.Tensor:
        """[U, n] cosine of each row and the nearest of ``directions`` [U, b, hidden]."""
        return self._rows.times(directions, lambda products: products.amax(-1)) * self._scale


def chosen_greedily(tokens: int) -> int:
    """How many of an image's ``tokens`` are taken one after the other, or in blocks."""
    return tokens if tokens <= EXACT else -(-tokens // 2)


def worth_of_the_first(likeness: torch.Tensor) -> torch.Tensor:
    """Of cosines with the mean. Never zero: there is always a first."""
    return (1 - likeness).clamp(min=RESOLUTION)


def told_apart(distances: torch.Tensor) -> torch.Tensor:
    return distances.masked_fill(distances <= RESOLUTION, 0)
