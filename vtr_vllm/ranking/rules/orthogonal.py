"""Greedy orthogonal selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch


class Orthogonal(ImageRule):
    """Next comes the token of which the largest part is new: orthogonal to all before it (GOTS, arXiv
    2607.23913). Pivoted Gram-Schmidt on the rows of the residual stream.

    Rows keep their length, as it is the error of what is left out that counts: SPARE (arXiv
    2606.18681) loses by normalising them, and of rows of one length the first would be chance. By
    direction alone is ``diverse``. Tokens behind the rank of the rows follow by what is left of them,
    then by their number. Larger images are taken in blocks: ``vtr_vllm.ranking.greedy``.
    """

    name = "orthogonal"
    needs = frozenset({Need.STATES})

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        from vtr_vllm.ranking.greedy import greedy_scores
        from vtr_vllm.ranking.residuals import Residuals

        assert images.states is not None
        residuals = Residuals(images.states)
        return greedy_scores(residuals, residuals.most)
