"""The order of the previous cut once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtr_vllm.ranking.request_rule import RequestRule
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch

    from vtr_vllm.ranking.inputs import RankInputs


class Previous(RequestRule):
    """The order of the previous cut once more: rank once, cut often."""

    name = "previous"
    needs = frozenset({Need.PREVIOUS})
    sees_question = True  # as the rule that it repeats may: see ``see_no_question``

    def score(self, inputs: RankInputs) -> torch.Tensor:
        assert inputs.previous is not None
        return inputs.of_tokens(inputs.previous)
