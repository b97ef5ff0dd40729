"""The two kinds of schedules that are searched, and where each of them may cut by which rules.

A guided schedule looks at the question. A local one does not, and cuts at the first layers of KV
bands only, so that its KV serves later requests with the same images: ``ScheduleBook.reuses``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.ranking import RULES, Need
from vtr_vllm.schedules import FIRST_ATTENTION_CUT, RankRule
from vtr_vllm.search.rule_search import Places, guided_places, guided_starts
from vtr_vllm.search.study import Study
from vtr_vllm.search_options import Families

Family = Literal["guided", "local"]


@dataclass(frozen=True)
class Names:
    """What the stages of one family are called, which is also the method of what they find."""

    g_search: str
    p_sigmoid: str
    rules: str
    descent: str
    lossless: str


PAPER = Names("g-search", "p-sigmoid", "rules", "descent", "lossless")
"""The paper's two scenarios, guided; only these two of its stages run."""

NAMES: Mapping[Family, Names] = {
    "guided": Names("g-search-blind", "p-sigmoid-rules", "rules", "descent", "lossless"),
    "local": Names(
        "g-search-local", "p-sigmoid-local", "rules-local", "descent-local", "lossless-local"
    ),
}

LOSSLESS: Mapping[Family, str] = {"guided": "lossless", "local": "local-lossless"}
"""Name by which the schedule of least budget is served."""

INTERPOLATED: Mapping[Family, str] = {"guided": "interpolated", "local": "local-interpolated"}
"""Method of what is served between two budgets."""

SEARCHED: Mapping[Family, str] = {"guided": "searched", "local": "local-searched"}
"""Method of the best of each budget; with the budget behind it, its name."""


@dataclass(frozen=True)
class Layout:
    """Where schedules may cut, and by which rules."""

    starts: tuple[int, ...]
    """First layer of each stage, rising; layers before the first run in full."""
    rules: Mapping[int, RankRule]
    """Rank rule of a cut, by layer; ``last`` where none is given."""

    @property
    def later(self) -> tuple[int, ...]:
        """The stages but one before layer 0."""
        return tuple(start for start in self.starts if start)

    @property
    def blind(self) -> bool:
        """Whether there is a cut before layer 0."""
        return 0 in self.starts


def families(asked: Families) -> tuple[Family, ...]:
    """In the order in which they are searched."""
    return ("guided", "local") if asked == "both" else (asked,)


def family_of(method: str) -> Family:
    """The family whose search has this method."""
    local = NAMES["local"]
    return (
        "local" if method in (local.g_search, *of_a_budget("local"), local.lossless) else "guided"
    )


def of_a_budget(family: Family) -> tuple[str, str]:
    """The methods of a family that find a schedule for each budget, beyond the paper."""
    return NAMES[family].p_sigmoid, NAMES[family].descent


def paper_layout(family: Family, study: Study) -> Layout:
    """Every stage ranked by ``last``; of local schedules every band by ``self``, behind a cut by
    ``diverse`` before layer 0: one cut there alone, DivPrune, is then one of them.

    Raises ConfigurationError, see ``local_starts``.
    """
    if family == "guided":
        return Layout(guided_starts(study.geometry.layers), {})
    first, *later = local_starts(study.band_starts)
    by_attention = dict.fromkeys(later, RankRule.parse("self"))
    return Layout((first, *later), {first: RankRule.parse("diverse"), **by_attention})


def places(family: Family, study: Study) -> Places:
    """The rules that are tried, by layer; raises ConfigurationError, see ``local_starts``."""
    if family == "guided":
        return guided_places(study.geometry.layers, blind_rules(study.has_cls))
    starts = local_starts(study.band_starts)
    return {start: local_rules(start, study.has_cls) for start in starts}


def blind_rules(has_cls: bool) -> tuple[RankRule, ...]:
    """Every rule that ranks before layer 0, and the tokens of several images together, by name."""
    return tuple(rule for rule in local_rules(0, has_cls) if not rule.of_one_image)


def local_rules(layer: int, has_cls: bool) -> tuple[RankRule, ...]:
    """Every rule that ranks before ``layer`` and does not see the question, by name.

    ``previous`` is none of them: it repeats another cut's order; nor are those of models with
    registers, which take no other rule.
    """
    return tuple(
        rule
        for _, kind in sorted(RULES.items())
        if not kind.sees_question and (has_cls or Need.TOWER not in kind.needs)
        if Need.REGISTERS not in kind.needs
        for rule in kind.forms()
        if layer >= FIRST_ATTENTION_CUT or not rule.needs_attention
    )


def local_starts(band_starts: Sequence[int]) -> tuple[int, ...]:
    """Layers before which local schedules cut: 0, and the bands' first ones from layer 2 on.

    Before layer 1, where some small models have a band, attention ranks nothing yet, and a cut
    saves one layer less than before layer 0. Raises ConfigurationError for an engine with one band.
    """
    later = [start for start in band_starts if start >= FIRST_ATTENTION_CUT]
    if not later:
        raise ConfigurationError(
            f"the engine's KV bands start at layers {list(band_starts)}, so a local schedule is one"
            " cut before layer 0, which needs no search: divprune-<budget>; give the engine more"
            " bands (additional-config vtr bands), or search --family guided"
        )
    return (0, *later)
