"""What trained modules decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from vtr_vllm.errors import ScheduleError
from vtr_vllm.ranking.attention import AttentionRule
from vtr_vllm.ranking.judged_rule import JudgedRule
from vtr_vllm.ranking.rule import RankRule
from vtr_vllm.ranking.rules.instruction import Instruction

if TYPE_CHECKING:
    import numpy as np


class _Later(AttentionRule):
    """Attention that an image's tokens get from its later ones, all of them together."""

    sees_itself: ClassVar[bool] = False

    def asking(self, rows: int, instruction_rows: int, vision_rows: int) -> np.ndarray:
        import numpy as np

        end = rows - instruction_rows
        return np.arange(end - vision_rows, end)

    def shares(self, asking: np.ndarray) -> np.ndarray | None:
        import numpy as np

        return np.ones(len(asking), np.float32)


@dataclass(frozen=True)
class Atp(JudgedRule):
    """The decision of ATP-LLaVA's module before this layer (arXiv 2412.00447, equations 3 to 8).

    Of one image alone. What scores above 0 stays, and at most the schedule's count; ``fixed``: that count
    of the best.
    """

    fixed: bool = False

    name = "atp"
    sees_question = True
    options: ClassVar[Mapping[str, tuple[str, object]]] = {"fixed": ("fixed", True)}

    def __post_init__(self) -> None:
        if not isinstance(self.fixed, bool):
            raise ScheduleError(f"rank rule atp with fixed={self.fixed!r}; it is True or False")

    @property
    def looks(self) -> tuple[AttentionRule, ...]:
        """Eq. 3 and eq. 4."""
        return _Later(), Instruction()

    @property
    def is_adaptive(self) -> bool:
        return not self.fixed

    def with_fixed_count(self) -> RankRule:
        return replace(self, fixed=True)

    @property
    def scores_are_weights(self) -> bool:
        return False  # they are distances from a threshold
