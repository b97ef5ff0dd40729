"""Greedy choice of tokens that are far from one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.image_rule import ImageRule
from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch


class Diverse(ImageRule):
    """Next comes the token whose nearest among those before it is farthest, by the cosine of their rows
    of the residual stream (DivPrune, arXiv 2503.02175).

    The first is the one farthest from the mean of the rows: the paper's, whose nearest token is
    farthest, takes the distances of all pairs. Larger images are taken in blocks, and half of the
    tokens: the others follow by their distance from that half, then by their number. See
    ``vtr_vllm.ranking.greedy``.
    """

    name = "diverse"
    needs = frozenset({Need.STATES})

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        from vtr_vllm.ranking.distances import Distances
        from vtr_vllm.ranking.greedy import greedy_scores

        assert images.states is not None
        distances = Distances(images.states)
        return greedy_scores(distances, distances.most)
