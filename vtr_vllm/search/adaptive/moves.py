"""Schedules next to a schedule: fewer tokens or more, cuts earlier or later, one cut more."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from vtr_vllm.ranking import Need
from vtr_vllm.schedules import FIRST_ATTENTION_CUT, RankRule, cut_layers
from vtr_vllm.search.candidates import Candidate

BLIND = RankRule.parse("diverse")
ATTENTION = RankRule.parse("instruction-norope")

_SHARES = (0.0, 0.5, 0.75, 1.5)
"""What a stage keeps of what it kept."""


def neighbours(candidate: Candidate, n_vision: int) -> list[Candidate]:
    """Every schedule that differs from ``candidate`` in one stage, each once."""
    counts = [round(rate * n_vision) for rate in candidate.keep]
    rules = dict(zip(cut_layers(candidate.keep, 1.0), candidate.rules, strict=True))
    found = {
        with_counts(changed, rules, n_vision): None
        for changed in _changes(counts, n_vision)
        if changed != counts
    }
    found.pop(candidate, None)
    return list(found)


def with_counts(counts: Sequence[int], rules: Mapping[int, RankRule], n_vision: int) -> Candidate:
    """A candidate whose cuts rank by ``rules``, by layer: each by that of the nearest, the earlier of two.

    Without any, by ``ATTENTION``; where that cannot rank yet, by ``BLIND``.
    """
    own = {layer: rule for layer, rule in rules.items() if Need.PREVIOUS not in rule.needs}

    def rule_of(layer: int) -> RankRule:
        nearest = min(own, key=lambda cut: (abs(cut - layer), cut), default=None)
        rule = ATTENTION if nearest is None else own[nearest]
        return BLIND if rule.needs_attention and layer < FIRST_ATTENTION_CUT else rule

    return Candidate.from_counts(counts, [rule_of(i) for i in range(len(counts))], n_vision)


def _changes(counts: Sequence[int], n_vision: int) -> Iterator[list[int]]:
    layers = len(counts)
    edges = [0, *(i for i in range(1, layers) if counts[i] < counts[i - 1]), layers]
    for begin, end in pairwise(edges):
        count = counts[begin]
        for share in _SHARES:
            yield _set(counts, begin, end, round(count * share), n_vision)
        if end - begin > 1:  # one cut more, half-way
            middle = (begin + end) // 2
            for share in (0.0, 0.5):
                yield _set(counts, middle, end, round(count * share), n_vision)
        if begin > 0:
            yield _set(counts, begin - 1, end, count, n_vision)  # its cut a layer earlier
            yield _set(counts, begin, begin + 1, counts[begin - 1], n_vision)  # a layer later


def _set(counts: Sequence[int], begin: int, end: int, count: int, n_vision: int) -> list[int]:
    """``count`` in the layers ``begin`` to ``end``; others follow where counts would rise."""
    count = max(0, min(count, n_vision))
    before = [max(count, each) for each in counts[:begin]]
    behind = [min(count, each) for each in counts[end:]]
    return [*before, *[count] * (end - begin), *behind]
