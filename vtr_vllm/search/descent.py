"""Coordinate descent on rules and counts themselves, under a fixed budget.

A family's optimum is a smooth curve with the rules that are best where each cuts alone. From there,
other rules take a cut's place, one at a time; a cut merges what it drops; then layer-tokens (one vision
token in one layer) are moved between the stages of a schedule, in both directions and over all pairs,
as long as that raises the value; then in smaller portions. The sum over the layers, and so the budget,
stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from scipy.optimize import isotonic_regression

from vtr_vllm.schedules import RankRule, Schedule
from vtr_vllm.schedules.keep_rates import cut_layers
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.study import Study

Rates = tuple[float, ...]


@dataclass(frozen=True)
class Descent:
    """What to search: see ``descend``."""

    starts: Sequence[int]
    """First layer of each stage after the first, which begins at layer 0."""
    rules: Mapping[int, RankRule]
    """Rank rule of a cut, by layer; without one for layer 0 the first stage stays full."""
    rivals: Mapping[int, Sequence[RankRule]] = field(default_factory=dict)
    """Rules that may take its place, by layer."""
    portions: Sequence[float] = (0.1, 0.04)
    """Layer-tokens moved at once, as shares of the budget's."""
    sweeps: int = 2
    """Moves of each kind at most: rules that change, cuts that merge, moves per portion."""
    rungs: Sequence[tuple[int, int]] = ((100, 8), (300, 3))
    """Items and survivors of the race among the moves; the winner meets the schedule so far on
    the items of ``final``."""
    final: int | None = None
    merges: Sequence[str] = ()
    """What may become of the tokens that a cut drops: names of ``vtr_vllm.ranking.merge``."""
    worth_merging: float = 0.005
    """Value that a merge must add, since it takes time, too."""
    enough: float = 0.0
    """No moves are tried on a schedule that loses at most this much value against the unreduced
    model: there is next to nothing to win."""


@dataclass(frozen=True)
class _State:
    """Where a descent is."""

    rates: Rates
    rules: Mapping[int, RankRule]


def descend(study: Study, stage: str, settings: Descent, start: Schedule) -> Schedule:
    """Improve ``start`` while keeping its budget; returns it unchanged where nothing is better.

    ``start`` must have one rate within each stage. Raises EvaluationFailed as the study.
    """
    layers = study.geometry.layers
    bounds = [0, *settings.starts, layers]
    sizes = [end - begin for begin, end in pairwise(bounds)]
    rules = {**settings.rules, **dict(zip(start.cuts, start.rules, strict=True))}
    state = _State(tuple(start.keep[begin] for begin in bounds[:-1]), rules)
    (best,) = study.evaluate(stage, [_candidate(study, settings, start, state)], settings.final)
    first = best
    moves_made = 0
    enough = best.value >= study.unreduced(settings.final).value - settings.enough
    for options_of, least in () if enough else _kinds_of_moves(settings, sizes):
        for _ in range(settings.sweeps):
            options = {
                _candidate(study, settings, start, option): option for option in options_of(state)
            }
            options.pop(best.candidate, None)
            if not options:
                break
            (winner, *_) = study.race(stage, list(options), settings.rungs)
            (found,) = study.evaluate(stage, [winner.candidate], settings.final)
            if found.value <= best.value + least:
                break
            best, state = found, options[winner.candidate]
            moves_made += 1
    study.progress.step(
        f"{start.name}: {moves_made} moves, accuracy {first.accuracy:.3f} to {best.accuracy:.3f}"
    )
    if not moves_made:
        return start
    return _schedule(settings, start, state, {"from": start.name, "moves": moves_made})


def _kinds_of_moves(
    settings: Descent, sizes: Sequence[int]
) -> list[tuple[Callable[[_State], list[_State]], float]]:
    """Another rule at a cut; a merge; then tokens from one stage to another, in falling portions. With
    the value that each must add."""

    def other_rules(state: _State) -> list[_State]:
        return [
            replace(state, rules={**state.rules, layer: rule})
            for layer, rivals in settings.rivals.items()
            for rule in rivals
            if rule != state.rules.get(layer)
        ]

    def other_merges(state: _State) -> list[_State]:
        kept = dict(zip((0, *settings.starts), state.rates, strict=True))
        return [
            replace(state, rules={**state.rules, layer: rule.merging(name)})
            for layer, rule in state.rules.items()
            for name in settings.merges
            if kept.get(layer, 0.0) > 0 and rule.merge != name and rule.can_merge(name)
        ]

    def other_rates(portion: float, state: _State) -> list[_State]:
        amount = portion * sum(r * size for r, size in zip(state.rates, sizes, strict=True))
        found = neighbours(state.rates, sizes, amount, fixed_first=0 not in settings.rules)
        return [replace(state, rates=rates) for rates in found]

    moving = [(partial(other_rates, portion), 0.0) for portion in settings.portions]
    return [(other_rules, 0.0), (other_merges, settings.worth_merging), *moving]


def neighbours(rates: Rates, sizes: Sequence[int], amount: float, fixed_first: bool) -> list[Rates]:
    """Every way to move ``amount`` (keep rate times layers) from one stage to another.

    A move takes at most what the stage has and what the other can hold below 1. Moves that would
    let a rate rise with depth carry the stages between along: they level them. Only results
    whose rates never rise are returned, each once.
    """
    found: dict[Rates, None] = {}
    for giver in range(len(rates)):
        for taker in range(len(rates)):
            if giver == taker or (fixed_first and 0 in (giver, taker)):
                continue
            moved = min(amount, rates[giver] * sizes[giver], (1 - rates[taker]) * sizes[taker])
            changed = list(rates)
            changed[giver] -= moved / sizes[giver]
            changed[taker] += moved / sizes[taker]
            result = tuple(min(1.0, max(0.0, rate)) for rate in level(changed, sizes))
            if fixed_first and result[0] != rates[0]:
                continue
            if result != rates:
                found[result] = None
    return list(found)


def level(rates: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """The nearest rates (weighted least squares) that never rise, of the same weighted sum."""
    levelled = isotonic_regression(list(rates), weights=list(sizes), increasing=False)
    return [float(rate) for rate in levelled.x]


def _candidate(study: Study, settings: Descent, start: Schedule, state: _State) -> Candidate:
    schedule = _schedule(settings, start, state, {})
    return Candidate.of(schedule, study.same_n_vision)


def _schedule(
    settings: Descent, start: Schedule, state: _State, parameters: Mapping[str, str | int]
) -> Schedule:
    bounds = [0, *settings.starts, start.geometry.layers]
    keep = [
        rate
        for rate, (begin, end) in zip(state.rates, pairwise(bounds), strict=True)
        for _ in range(end - begin)
    ]
    last = RankRule.parse("last")
    return Schedule(
        name=f"descent-{start.budget!r}",
        geometry=start.geometry,
        keep=tuple(keep),
        rules=tuple(state.rules.get(cut, last) for cut in cut_layers(keep, 1.0)),
        method="descent",
        parameters=dict(parameters),
        budget=start.budget,
    )
