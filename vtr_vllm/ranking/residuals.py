"""What of each row is orthogonal to those that have been taken."""

import torch

from vtr_vllm.ranking.greedy import Greedy, Rows

BASIS_BYTES = 128 << 20
"""Of an image's coordinates, 4 bytes for each of its tokens and each token that is taken: over 8,192
tokens, no more are taken than fit."""
RESOLUTION = 1e-4
"""Share of a row's square below which it counts as explained: bfloat16 rounds a tenth of that away."""
_TINY = 1e-30
"""For rows of zeros."""


class Residuals(Greedy):
    """Squared length of what is left of each row [U, n]: an incomplete pivoted Cholesky factorization
    of the rows' products, [n, n], of which it holds the columns of the tokens that were taken."""

    def __init__(self, states: torch.Tensor) -> None:
        images, tokens, hidden = states.shape
        self.most = min(tokens, hidden, BASIS_BYTES // (4 * tokens))
        self._rows = Rows(states)
        self.worth = self._rows.norms().square()
        self._least = (RESOLUTION * self.worth).clamp(min=_TINY)
        self._basis = self.worth.new_empty(images, tokens, self.most)
        self._size = 0

    def beside_better(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = self._rows.at(tokens)
        coordinates = self._rows.of(self._taken(), tokens)
        products = torch.baddbmm(torch.bmm(rows, rows.mT), coordinates, coordinates.mT, alpha=-1)
        least = self._least.gather(1, tokens)
        # What keeps the factor real where rows are dependent.
        products.diagonal(dim1=1, dim2=2).add_(least)
        factor = torch.linalg.cholesky_ex(products).L
        return _above(factor.diagonal(dim1=1, dim2=2).square() - least, least)

    def take(self, tokens: torch.Tensor, live: torch.Tensor) -> None:
        column = self._rows.times(self._rows.at(tokens))
        if self._size:
            coordinates = self._rows.of(self._taken(), tokens)
            column = torch.baddbmm(column, self._taken(), coordinates.mT, alpha=-1)
        products = self._rows.of(column, tokens)
        block = tokens.shape[1]
        if block == 1:
            column = column * products.rsqrt().masked_fill(~live[:, None], 0)
            explained = column[:, :, 0].square()
        else:
            # Those that are not taken are as orthogonal to all others, and have no coordinates.
            both = live[:, None] & live[:, :, None]
            own = torch.eye(block, device=products.device)
            factor = torch.linalg.cholesky_ex(torch.where(both, products, own)).L
            column = column.masked_fill(~live[:, None], 0)
            column = torch.linalg.solve_triangular(factor.mT, column, upper=True, left=False)
            explained = torch.linalg.vector_norm(column, dim=-1).square()
        self._basis[:, :, self._size : self._size + block] = column
        self._size += block
        self.worth = _above(self.worth - explained, self._least)

    def _taken(self) -> torch.Tensor:
        """[U, n, size] coordinates of all rows along what was taken."""
        return self._basis[:, :, : self._size]


def _above(values: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(values <= least, 0)
