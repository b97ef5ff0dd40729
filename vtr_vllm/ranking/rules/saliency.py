"""How unlike its image a token is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.rule import Need, RankRule

if TYPE_CHECKING:
    import torch

    from vtr_vllm.ranking.inputs import RankInputs


class Saliency(RankRule):
    """Distance of a token's input embedding from its image's median: how unlike the background.

    Question-blind and a function of the image alone, so it can cut before layer 0.
    """

    name = "saliency"
    needs = frozenset({Need.EMBEDDINGS})
    sees_question = False

    def score(self, inputs: RankInputs) -> torch.Tensor:
        assert inputs.embeddings is not None
        embeddings = inputs.embeddings.float()
        distances = embeddings.new_empty(len(embeddings))
        first = 0
        for size in filter(None, inputs.image_sizes):
            image = embeddings[first : first + size]
            distances[first : first + size] = (image - image.median(0).values).norm(dim=-1)
            first += size
        return inputs.of_tokens(distances)
