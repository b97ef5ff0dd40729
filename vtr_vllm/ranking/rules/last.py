"""Attention from the last prompt token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking.attention import AttentionRule

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Last(AttentionRule):
    """Attention from the last prompt token (FastV, arXiv 2403.06764: what its code ranks by).

    ``prior``: less what the first token behind the images gives: what a null text would look at (PriorTR,
    arXiv 2606.24156), where no question stands before the images; else it has seen that one, too. Where
    the question is one token, nothing is taken away.
    """

    prior: bool = False

    name = "last"
    options: ClassVar[Mapping[str, tuple[str, object]]] = {
        **AttentionRule.options,
        "prior": ("prior", True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prior, bool):
            raise ScheduleError(f"rank rule last with prior={self.prior!r}; it is True or False")

    @property
    def scores_are_weights(self) -> bool:
        return not self.prior  # differences may be negative

    def asking(self, rows: int, instruction_rows: int, vision_rows: int) -> np.ndarray:
        import numpy as np

        if self.prior and instruction_rows > 1:
            return np.array([rows - instruction_rows, rows - 1])
        return np.array([rows - 1])

    def shares(self, asking: np.ndarray) -> np.ndarray | None:
        import numpy as np

        return np.array([-1.0, 1.0], np.float32)[-len(asking) :] if self.prior else None
