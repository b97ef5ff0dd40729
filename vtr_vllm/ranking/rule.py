"""What a rank rule is, and the text that names one."""

from __future__ import annotations

import enum
import itertools
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from vtr_vllm.errors import ScheduleError, show
from vtr_vllm.ranking.merge import merges

_MAX_TEXT = 192


class Need(enum.Enum):
    """What a rank rule looks at; the engine gathers it where a rule needs it."""

    ATTENTION = "attention"
    """Attention of the layer before the cut, by an ``AttentionRule``; such a cut is never before layer
    index 2."""
    EMBEDDINGS = "embeddings"
    """Input embeddings of the vision tokens."""
    STATES = "states"
    """The residual stream at the cut, of the vision tokens that are still there."""
    TOWER = "tower"
    """Attention of the vision tower's CLS token."""
    REGISTERS = "registers"
    """Learned registers behind an image's tokens: some checkpoints have them."""
    PREVIOUS = "previous"
    """Scores of the cut before; such a rule is never a schedule's first."""
    MODULES = "modules"
    """Trained modules that the engine was started with: what it looks at, they judge."""


RULES: dict[str, type[RankRule]] = {}
"""Name -> class, of all rules."""


@dataclass(frozen=True)
class RankRule(ABC):
    """One way to order the vision tokens at a cut; the best-ranked are kept.

    A rule is one class in one file of ``vtr_vllm.ranking.rules``, of one of four kinds, by what the
    engine gives it: ``ImageRule``, ``AttentionRule``, ``RequestRule``, ``JudgedRule``. Options are fields with defaults:
    a subclass that has some is a frozen dataclass. torch is imported where a rule scores.
    Raises ScheduleError for an option out of range.
    """

    merge: str = field(default="", kw_only=True)
    """Name of what becomes of the tokens that are dropped: ``vtr_vllm.ranking.merge``; none: nothing."""

    name: ClassVar[str]
    """What schedules write: lower-case letters, digits and ``_``, as the file."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    sees_question: ClassVar[bool]
    """False where the order depends on the images alone: such a cut may be before layer 0."""
    of_one_image: ClassVar[bool] = False
    """Whether it ranks the tokens of one image by themselves, and so in local schedules alone."""
    options: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Suffix of the short text -> (field, its value then); written in this order."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            if cls.name in RULES:
                raise TypeError(f"two rank rules are named {cls.name}: {RULES[cls.name]}, {cls}")
            RULES[cls.name] = cls

    @property
    def needs_attention(self) -> bool:
        return Need.ATTENTION in self.needs

    @classmethod
    def forms(cls) -> list[RankRule]:
        """The rule with every set of its options."""
        choices = itertools.product(*([{}, dict([set_to])] for set_to in cls.options.values()))
        made = [cls(**{k: v for part in chosen for k, v in part.items()}) for chosen in choices]
        return list(dict.fromkeys(made))

    @staticmethod
    def parse(text: object) -> RankRule:
        """Read the short form, such as ``last-norope-max``, ``last:90``, ``last@0.9`` or
        ``cls+nearest``; raises ScheduleError."""
        if isinstance(text, str) and len(text) <= _MAX_TEXT:
            ranked, plus, merge = text.partition("+")
            ranked, at, mass = ranked.partition("@")
            ranked, colon, heads = ranked.partition(":")
            kind = RULES.get(ranked.partition("-")[0])
            for rule in kind.forms() if kind else ():
                if str(rule) == ranked:
                    rule = rule.weighing(heads) if colon else rule
                    rule = rule.holding(mass) if at else rule
                    return rule.merging(merge) if plus else rule
        known = ", ".join(
            "".join([name, *(f"[-{option}]" for option in RULES[name].options)])
            for name in sorted(RULES)
        )
        raise ScheduleError(f"rank rule {show(text)} is unknown; known are {known}")

    def weighing(self, heads: str) -> RankRule:
        """The rule with attention heads that count as ``heads`` says; raises ScheduleError."""
        raise ScheduleError(
            f"rank rule {self}:{heads} weighs attention heads, and none are weighed by {self}: leave out"
            " what is behind the colon"
        )

    def holding(self, mass: str) -> RankRule:
        """The rule with a count that follows from its scores; raises ScheduleError."""
        raise ScheduleError(
            f"rank rule {self}@{mass} keeps a share of the attention, and {self} ranks by no such share:"
            " leave out what is behind the @, or rank by last or instruction"
        )

    def with_fixed_count(self) -> RankRule:
        """The same order, of which the schedule says how many stay."""
        return self

    @property
    def is_adaptive(self) -> bool:
        """Whether its scores say how many tokens stay, of those that the schedule lets stay."""
        return False

    @property
    def scores_are_weights(self) -> bool:
        """Whether scores are shares of attention, by which tokens can be weighed."""
        return bool({Need.ATTENTION, Need.TOWER} & self.needs)

    def can_merge(self, name: str) -> bool:
        """Whether the merge ``name``, which there is, can weigh what it needs to."""
        return self.scores_are_weights or not merges()[name].weighs_scores

    def merging(self, name: str) -> RankRule:
        """The rule with what it drops merged; raises ScheduleError."""
        known = merges()
        if name not in known:
            raise ScheduleError(
                f"rank rule {self} merges by {show(name)}, which is unknown; known are"
                f" {', '.join(known)}"
            )
        if not self.can_merge(name):
            raise ScheduleError(
                f"{self}+{name} weighs tokens by their scores, and those of {self} are no weights;"
                " merge by nearest, or rank by attention"
            )
        return replace(self, merge=name)

    def __str__(self) -> str:
        set_ones = [
            s for s, (option, value) in self.options.items() if getattr(self, option) == value
        ]
        text = "-".join([self.name, *set_ones]) + self._suffixes()
        return f"{text}+{self.merge}" if self.merge else text

    def _suffixes(self) -> str:
        """What stands between options and merge."""
        return ""
