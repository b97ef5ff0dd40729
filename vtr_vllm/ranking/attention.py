"""Rules by attention: the part that they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking.rule import Need, RankRule

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vtr_vllm.ranking.inputs import RankInputs

Heads = Literal["mean", "max"]


@dataclass(frozen=True)
class AttentionRule(RankRule):
    """Attention probability from the last rows of the prompt: softmax over every key that they see.

    ``rope=False`` scores without rotary positions: with them the bottom of the image is favoured
    (FEATHER, arXiv 2412.13180). ``heads`` says how attention heads are merged: ``mean`` as FastV,
    ``max`` as FitPrune (arXiv 2409.10197).
    """

    rope: bool = True
    heads: Heads = "mean"

    needs = frozenset({Need.ATTENTION})
    sees_question = True
    options: ClassVar[Mapping[str, tuple[str, object]]] = {
        "norope": ("rope", False),
        "max": ("heads", "max"),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.rope, bool) or self.heads not in get_args(Heads):
            raise ScheduleError(
                f"rank rule {self.name} with rope={self.rope!r}, heads={self.heads!r};"
                " rope is True or False, heads is 'mean' or 'max'"
            )

    by_visible: ClassVar[bool] = False
    """Whether what a row gets is divided by the number of asking rows that see it."""

    @abstractmethod
    def asking(self, rows: int, instruction_rows: int) -> np.ndarray:
        """Places, ascending, of the rows that ask among ``rows`` of a prompt or an image.

        ``instruction_rows`` as in ``RankInputs``.
        """

    def score(self, inputs: RankInputs) -> torch.Tensor:
        import torch

        from vtr_vllm.ranking.probabilities import attention_received

        attention = inputs.attention
        assert attention is not None
        if not self.rope:
            attention = attention.unrotated()
        asking = self.asking(inputs.prompt_rows, inputs.instruction_rows)
        return attention_received(inputs, attention, torch.from_numpy(asking), self.heads)
