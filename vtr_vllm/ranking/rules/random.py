"""A random order, fixed by the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.rule import RankRule

if TYPE_CHECKING:
    import torch

    from vtr_vllm.ranking.inputs import RankInputs


class Random(RankRule):
    """A random order, fixed by the prompt: the baseline that every other rule must beat.

    One score per vision token for the whole request, so kept sets nest from cut to cut.
    """

    name = "random"
    sees_question = False

    def score(self, inputs: RankInputs) -> torch.Tensor:
        import torch

        # Drawn on the host: the same tokens on every device and every tensor-parallel rank.
        generator = torch.Generator().manual_seed(inputs.seed)
        return inputs.of_tokens(torch.rand(inputs.n_vision, generator=generator))
