"""Search over rank rules: how well does each rule rank the vision tokens at each layer?

The rules of a schedule matter as much as its counts. A rule is measured where it alone decides:
one cut before a layer, everything before in full.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vtr_vllm.schedules import FIRST_ATTENTION_CUT, RankRule
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.study import Study

ATTENTION_RULES = tuple(
    RankRule.parse(text)
    for text in (
        "last",
        "last-norope",
        "last-max",
        "last-norope-max",
        "last-prior",
        "last-norope-prior",
        "instruction",
        "instruction-norope",
        "instruction-max",
        "instruction-norope-max",
        "random",  # ranking may be no better than chance in deep layers
    )
)

BY_MEAN_OF_HEADS = tuple(
    RankRule.parse(text)
    for text in ("last", "last-norope", "instruction", "instruction-norope", "self")
)
"""Of which the heads can be weighed."""

Places = Mapping[int, Sequence[RankRule]]
"""The rules to try, by the layer before which they rank; 0 is among the layers."""

MOST_STAGES = 10
"""Places of attention's cuts in a guided schedule: each costs evaluations here and launches where it runs,
and the paper's own curves keep the same for three or four of 32 layers."""

_RATES = (0.2, 0.07)
_BLIND_RATES = (0.5, 0.25)
_RIVALS = 3
_MOST = 9
_LIKE = str(_MOST)
"""What a head counts where it is worth most, and where all are alike."""
_WORSE = 0.005
"""A layer is no place to cut if its best rule is worth this much less than an earlier layer's."""


@dataclass(frozen=True)
class RuleTable:
    """The value of every rule at every layer, and what follows."""

    values: Mapping[int, Mapping[str, float]]
    """Layer to rule to mean value over the keep rates tried."""
    rules: Mapping[int, RankRule]
    """The best rule of each layer."""
    cut_layers: tuple[int, ...]
    """Layers but 0 that rank no worse than every layer before: where to cut. At another layer
    a cut loses tokens that a cut earlier on, or later, would have kept."""
    weighed: Mapping[int, RankRule] = field(default_factory=dict)
    """Of these layers: the best rule by the mean of attention heads, each weighed by its worth."""

    def rivals(self, layer: int) -> tuple[RankRule, ...]:
        """The best three rules of a layer, the best that sees the question and that does not, and the one
        with weighed heads.

        One cut alone is measured behind layers that see all tokens; behind earlier cuts another of them
        may be better.
        """
        ranked = _best({RankRule.parse(text): v for text, v in self.values[layer].items()})
        kinds = {rule.sees_question: rule for rule in reversed(ranked)}
        weighed = [self.weighed[layer]] if layer in self.weighed else []
        first = [self.rules[layer], *ranked[:_RIVALS]]
        return tuple(dict.fromkeys([*first, *kinds.values(), *weighed]))


def guided_starts(layers: int) -> tuple[int, ...]:
    """Layers before which guided schedules cut by attention: each from 2 on, of deep models every so many."""
    stride = max(1, math.ceil((layers - FIRST_ATTENTION_CUT) / MOST_STAGES))
    return tuple(range(FIRST_ATTENTION_CUT, layers, stride))


def guided_places(layers: int, blind: Sequence[RankRule]) -> Places:
    """``blind`` before layer 0, and before every stage of attention's these and the rules by attention."""
    both = tuple(dict.fromkeys([*ATTENTION_RULES, *blind]))
    return {0: tuple(blind), **dict.fromkeys(guided_starts(layers), both)}


def search_rules(study: Study, stage: str, rungs: tuple[int, int], places: Places) -> RuleTable:
    """Measure every rule at every place on ``rungs[0]`` items, each layer's best three on
    ``rungs[1]``."""
    rough = _values(study, stage, places, rungs[0])
    left = {layer: tuple(_best(values)[:_RIVALS]) for layer, values in rough.items()}
    fine = _values(study, stage, left, rungs[1])
    best = {layer: _best(values)[0] for layer, values in fine.items()}
    for layer, rule in best.items():
        study.progress.step(f"layer {layer} ranks best by {rule} ({fine[layer][rule]:.3f})")
    cut_layers = _cut_layers({k: max(v.values()) for k, v in fine.items() if k})
    return RuleTable(
        values={k: {str(rule): value for rule, value in v.items()} for k, v in rough.items()},
        rules=best,
        cut_layers=cut_layers,
        weighed=_weigh_heads(study, stage, {k: rough[k] for k in cut_layers}, rungs[0]),
    )


def _weigh_heads(
    study: Study, stage: str, rough: Mapping[int, Mapping[RankRule, float]], items: int
) -> dict[int, RankRule]:
    """The best rule of each layer that takes a mean of heads, each head weighed by its worth: what is
    lost without it (HAWK, arXiv 2604.07812: ablation on calibration data).

    No entry where no head is worth anything, or all the same.
    """
    heads = study.geometry.heads
    without = [_LIKE * head + "0" + _LIKE * (heads - 1 - head) for head in range(heads)]
    means = {
        layer: rule
        for layer, values in rough.items()
        for rule in [r for r in _best(values) if r in BY_MEAN_OF_HEADS][:1]
        if heads > 1
    }
    places = {
        layer: [rule, *(rule.weighing(text) for text in without)] for layer, rule in means.items()
    }
    found = _values(study, stage, places, items, _RATES[:1])
    weighed = {}
    for layer, rule in means.items():
        all_heads, *fewer = (found[layer][each] for each in places[layer])
        worth = [all_heads - value for value in fewer]
        if max(worth) > 0:
            digits = [round(_MOST * max(0.0, each) / max(worth)) for each in worth]
            if len(set(digits)) > 1:
                weighed[layer] = rule.weighing("".join(map(str, digits)))
                study.progress.step(f"layer {layer} has heads worth {weighed[layer]}")
    return weighed


def _values(
    study: Study, stage: str, places: Places, items: int, rates: Sequence[float] = _RATES
) -> dict[int, dict[RankRule, float]]:
    """Mean value over the keep rates, by layer and rule."""
    asked = [
        (layer, rule, rate)
        for layer, rules in places.items()
        for rule in rules
        for rate in (rates if layer else _BLIND_RATES)
    ]
    candidates = [_one_cut(study.geometry.layers, *place) for place in asked]
    values: dict[int, dict[RankRule, float]] = {}
    for (layer, rule, _), found in zip(
        asked, study.evaluate(stage, candidates, items), strict=True
    ):
        by_rule = values.setdefault(layer, {})
        by_rule[rule] = by_rule.get(rule, 0.0) + found.value / len(rates)
    return values


def _best(values: Mapping[RankRule, float]) -> list[RankRule]:
    return sorted(values, key=lambda rule: -values[rule])


def _one_cut(layers: int, layer: int, rule: RankRule, rate: float) -> Candidate:
    return Candidate((1.0,) * layer + (rate,) * (layers - layer), (rule,))


def _cut_layers(quality: Mapping[int, float]) -> tuple[int, ...]:
    cuts = []
    best = float("-inf")
    for layer, value in sorted(quality.items()):
        if value >= best - _WORSE:
            cuts.append(layer)
        best = max(best, value)
    return tuple(cuts)
