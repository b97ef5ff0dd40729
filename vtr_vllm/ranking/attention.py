"""Rules by attention: the part that they share."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from vtr_vllm.errors import ScheduleError, show
from vtr_vllm.ranking.rule import Need, RankRule

if TYPE_CHECKING:
    import numpy as np

Heads = Literal["mean", "max"]

_DIGITS = re.compile("[0-9]*[1-9][0-9]*")
_SHARE = re.compile(r"0?\.[0-9]{1,4}")


@dataclass(frozen=True)
class AttentionRule(RankRule):
    """Attention probability from the last rows of the prompt: softmax over every key that they see.

    ``rope=False`` scores without rotary positions: with them the bottom of the image is favoured
    (FEATHER, arXiv 2412.13180). ``heads`` says how attention heads are merged: ``mean`` as FastV,
    ``max`` as FitPrune (arXiv 2409.10197). ``weights``: a digit for each query head of the model, what
    it counts in the mean (HAWK, arXiv 2604.07812); none: all alike. ``mass``: the share of the attention on
    vision tokens that those that stay must hold; the fewest do, and the schedule's count is the most. 0: its
    count.
    """

    rope: bool = True
    heads: Heads = "mean"
    weights: str = ""
    mass: float = 0.0

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
        if self.weights and (self.heads != "mean" or not _DIGITS.fullmatch(self.weights)):
            raise ScheduleError(
                f"rank rule {self} weighs attention heads by {self.weights!r}; write a digit for each"
                " query head, not all 0, behind a rule that takes their mean: last:90"
            )
        if self.mass and not 0 < self.mass < 1:
            raise ScheduleError(
                f"rank rule {self.name} keeps what holds {self.mass!r} of the attention; write a share"
                " above 0 and below 1: last@0.9"
            )
        if self.mass and (self.of_one_image or not self.scores_are_weights):
            raise ScheduleError(
                f"rank rule {self} keeps a share of the attention, and what {self.name} ranks by is none,"
                " or is of one image, whose count must be known beforehand; write last@0.9 or"
                " instruction@0.9"
            )

    by_visible: ClassVar[bool] = False
    """Whether what a row gets is divided by the number of asking rows that see it."""
    sees_itself: ClassVar[bool] = True
    """Whether what an asking row gives itself counts."""

    @abstractmethod
    def asking(self, rows: int, instruction_rows: int, vision_rows: int) -> np.ndarray:
        """Places, ascending, of the rows that ask among ``rows`` of a prompt or an image.

        Rows behind them are generated tokens and never ask. ``instruction_rows``: the last of them,
        text behind the last vision token. ``vision_rows``: how many are of vision tokens.
        """

    def shares(self, asking: np.ndarray) -> np.ndarray | None:
        """What each of ``asking`` counts, float32; None: 1 / as many as there are."""
        del asking
        return None

    def weighing(self, heads: str) -> RankRule:
        return replace(self, weights=heads or "0")  # nothing is refused as no weight is

    def holding(self, mass: str) -> RankRule:
        if not _SHARE.fullmatch(mass) or not float(mass):
            raise ScheduleError(
                f"rank rule {self}@{show(mass)} keeps a share of the attention; write a number above 0 and"
                " below 1, of at most 4 digits: last@0.9"
            )
        return replace(self, mass=float(mass))

    def with_fixed_count(self) -> RankRule:
        return replace(self, mass=0.0)

    @property
    def is_adaptive(self) -> bool:
        return bool(self.mass)

    def check_heads(self, heads: int) -> None:
        """Raise ScheduleError where the weights are not of a model with ``heads`` query heads."""
        if self.weights and len(self.weights) != heads:
            raise ScheduleError(
                f"rank rule {self} has weights for {len(self.weights)} attention heads; the model has"
                f" {heads}: write as many digits, or search a schedule for this model"
            )

    def head_weights(self) -> np.ndarray | None:
        """[query heads] float32 of mean 1; None: all alike."""
        import numpy as np

        if not self.weights:
            return None
        digits = np.array([int(digit) for digit in self.weights], np.float32)
        return digits / digits.mean()

    def _suffixes(self) -> str:
        weights = f":{self.weights}" if self.weights else ""
        return f"{weights}@{self.mass:g}" if self.mass else weights


def check_heads(rules: Iterable[RankRule], heads: int) -> None:
    """Raise ScheduleError where one is not for a model with ``heads`` query heads."""
    for rule in rules:
        if isinstance(rule, AttentionRule):
            rule.check_heads(heads)
