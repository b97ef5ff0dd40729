"""How far each row is from those that have been taken."""

import torch

from vtr_vllm.ranking.greedy import EXACT, Greedy, Rows

RESOLUTION = 1e-5
"""Cosine distance below which rows count as one: what float32 cannot tell over thousands of numbers."""


class Distances(Greedy):
    """Cosine distance [U, n] to the nearest that was taken; at first, to the mean. Rows of zeros are at
    1 from all others."""

    def __init__(self, states: torch.Tensor) -> None:
        tokens = states.shape[1]
        self.most = tokens if tokens <= EXACT else -(-tokens // 2)
        self._rows = Rows(states)
        norms = self._rows.norms()
        self._scale = norms.reciprocal().masked_fill(norms == 0, 0)
        mean = torch.nn.functional.normalize(self._rows.mean(), dim=-1)
        # Never zero: there is always a first.
        self.worth = self._away(mean).clamp(min=RESOLUTION)
        self._first = True

    def beside_better(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = self._directions(tokens)
        products = torch.bmm(rows, rows.mT)
        not_better = torch.ones_like(products[0], dtype=torch.bool).triu()
        nearest = products.masked_fill_(not_better, -torch.inf).amax(-1)
        return _told_apart(torch.minimum(self.worth.gather(1, tokens), 1 - nearest))

    def take(self, tokens: torch.Tensor, live: torch.Tensor) -> None:
        # The best stands in for those that are not taken.
        directions = self._directions(torch.where(live, tokens, tokens[:, :1]))
        away = self._away(directions)
        self.worth = _told_apart(away if self._first else torch.minimum(self.worth, away))
        self._first = False

    def _directions(self, tokens: torch.Tensor) -> torch.Tensor:
        """[U, c, hidden] rows of ``tokens`` [U, c], of length 1."""
        return self._rows.at(tokens) * self._scale.gather(1, tokens)[..., None]

    def _away(self, directions: torch.Tensor) -> torch.Tensor:
        """[U, n] of each row to the nearest of ``directions`` [U, b, hidden]."""
        nearest = self._rows.times(directions, lambda products: products.amax(-1))
        return 1 - nearest * self._scale


def _told_apart(distances: torch.Tensor) -> torch.Tensor:
    return distances.masked_fill(distances <= RESOLUTION, 0)
