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

    The first is the one farthest from the mean of the rows; the paper's, whose nearest token is
    farthest, takes the distances of all pairs, which of images of more than 2,048 tokens are not looked
    at: those are taken in blocks (``vtr_vllm.ranking.greedy``). Half of the tokens are taken greedily,
    all of up to 16; the others follow by their distance from that half, then by their number.
    """

    name = "diverse"
    needs = frozenset({Need.STATES})

    def score_images(self, images: ImageInputs) -> torch.Tensor:
        from vtr_vllm.ranking.distances import Distances
        from vtr_vllm.ranking.greedy import greedy_scores
        from vtr_vllm.ranking.pairs import MOST_TOKENS, farthest_first_scores

        assert images.states is not None
        if images.states.shape[1] <= MOST_TOKENS:
            return farthest_first_scores(images.states)
        distances = Distances(images.states)
        return greedy_scores(distances, distances.most)
