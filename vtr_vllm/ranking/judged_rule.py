"""Rules by which trained modules judge: the part that they share."""

from __future__ import annotations

from abc import abstractmethod

from vtr_vllm.ranking.attention import AttentionRule
from vtr_vllm.ranking.rule import Need, RankRule


class JudgedRule(RankRule):
    """A rule whose scores trained modules make of several looks at attention, which the engine was started with."""

    needs = frozenset({Need.ATTENTION, Need.MODULES})

    @property
    @abstractmethod
    def looks(self) -> tuple[AttentionRule, ...]:
        """Whose scores the modules are shown; with the last come the values of its last asking row."""


def looks_of(rule: RankRule) -> tuple[AttentionRule, ...]:
    """The rules by attention whose scores are a rule's own, or what its own are made of."""
    if isinstance(rule, AttentionRule):
        return (rule,)
    return rule.looks if isinstance(rule, JudgedRule) else ()
