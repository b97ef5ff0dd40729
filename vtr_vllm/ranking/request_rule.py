"""Rules that score one request after another: the part that they share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from vtr_vllm.ranking.rule import Need, RankRule

if TYPE_CHECKING:
    import torch

    from vtr_vllm.ranking.inputs import RankInputs


class RequestRule(RankRule):
    """A rule that looks at one request by itself, at anything but attention: see ``AttentionRule``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Need.ATTENTION in cls.needs:
            raise TypeError(f"{cls} needs attention, which an AttentionRule alone is given")

    @abstractmethod
    def score(self, inputs: RankInputs) -> torch.Tensor:
        """Scores [rows] float32 of one request's rows; only those of vision tokens mean something.

        The same on every tensor-parallel rank, and for the same request in any batch. Must not wait
        for the device. Equal scores go to the earlier token.
        """
