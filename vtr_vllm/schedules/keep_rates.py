"""Keep rates: the one place that says which are valid, where they cut and what they count.

A keep curve is one keep rate per decoder layer, in depth order: the share of a request's
vision tokens that enters that layer. Schedule files, requests and forms all pass through
``check_keep_and_rules``.
"""

import math
from collections.abc import Iterable, Sequence

from vtr_vllm.errors import InvalidBudget, ScheduleError, show
from vtr_vllm.ranking import RULES, Need, RankRule

FIRST_ATTENTION_CUT = 2
"""Least layer index of a cut ranked by attention: the ranking of vision tokens is alike in every
layer but the first (arXiv 2412.00556, abstract and figure 1), so layers 0 and 1 run in full."""

MOST_ADAPTIVE_CUTS = 4
"""Of a schedule: each waits for the device, and everybody else in the step with it."""

BUDGET_TOLERANCE = 1e-6
"""How far a schedule's mean keep may lie from the budget it states."""


_BLIND = sorted(name for name, rule in RULES.items() if not rule.sees_question)


def check_budget(value: object) -> float:
    """The budget as a float: a mean keep rate, 0 < b <= 1; raises InvalidBudget.

    Booleans and numeric strings are refused, as are NaN and infinities. A budget so small that
    no token of a prompt is kept is valid.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidBudget(
            f"budget {show(value)} is not a number in (0, 1]; send the mean share of vision"
            " tokens to keep over all layers, such as 0.5, or 1.0 for no reduction"
        )
    return float(value)


def mean(keep: Sequence[float]) -> float:
    """The mean keep rate over all layers, correctly rounded sum."""
    return math.fsum(keep) / len(keep)


def cut_layers(values: Iterable[float], before: float) -> tuple[int, ...]:
    """Layer indices whose value is below the one before it; ``before`` stands before layer 0."""
    cuts = []
    for layer, value in enumerate(values):
        if value < before:
            cuts.append(layer)
        before = value
    return tuple(cuts)


def see_no_question(rules: Iterable[RankRule]) -> bool:
    """Whether no cut's order depends on what stands behind an image; ``previous`` repeats another's."""
    return not any(rule.sees_question for rule in rules if Need.PREVIOUS not in rule.needs)


def of_one_image(rules: Iterable[RankRule]) -> RankRule | None:
    """The first rule that has a place in local schedules alone."""
    return next((rule for rule in rules if rule.of_one_image), None)


def adaptive_rules(rules: Iterable[RankRule]) -> list[RankRule]:
    """Those of which the model says how many tokens stay."""
    return [rule for rule in rules if rule.is_adaptive]


def cuts_inside_bands(cuts: Iterable[int], band_starts: Iterable[int]) -> list[int]:
    """The cuts that are not before the first layer of a KV band: with one, no schedule is local."""
    return sorted(set(cuts) - set(band_starts))


def keep_counts(keep: Sequence[float], n_vision: int) -> tuple[int, ...]:
    """Vision tokens kept per layer: keep rate times ``n_vision`` (float product), half up.

    Never rises, equal rates give equal counts, rate 1 gives ``n_vision`` exactly. A rate above
    0 may round to 0 tokens. Raises ValueError when ``n_vision`` is no whole number >= 0.
    """
    if isinstance(n_vision, bool) or not isinstance(n_vision, int) or n_vision < 0:
        raise ValueError(
            f"n_vision is {show(n_vision)}; it must be a whole number >= 0: count the prompt's"
            " vision tokens"
        )
    return tuple(_round_half_up(rate * n_vision) for rate in keep)


def check_keep_and_rules(
    keep: object, rules: object, layers: int
) -> tuple[tuple[float, ...], tuple[RankRule, ...]]:
    """Validate a keep curve with its rank rules, and return both in their own types.

    ``keep``: a list or tuple of ``layers`` numbers, each finite in [0, 1], never rising with
    depth. ``rules``: a list or tuple of RankRule or their short text, one per cut in depth
    order; attention never ranks a cut before layer index 2, and ``previous`` needs an earlier
    cut. Both hold for a cut to 0 too, although nothing is left to rank there. Raises
    ScheduleError.
    """
    rates = _check_keep(keep, layers)
    if not isinstance(rules, list | tuple):
        raise ScheduleError(f"rules must be a list of rank rules, got {show(rules)}")
    parsed = tuple(rule if isinstance(rule, RankRule) else RankRule.parse(rule) for rule in rules)
    cuts = cut_layers(rates, 1.0)
    if len(parsed) != len(cuts):
        raise ScheduleError(
            f"{len(parsed)} rank rules for {len(cuts)} cuts (before layers {show(list(cuts))});"
            " give one rule per cut in depth order"
        )
    for order, (layer, rule) in enumerate(zip(cuts, parsed, strict=True)):
        if rule.needs_attention and layer < FIRST_ATTENTION_CUT:
            raise ScheduleError(
                f"the cut before layer {layer} is ranked by {rule}; attention ranks from layer"
                f" index {FIRST_ATTENTION_CUT} on: use {', '.join(_BLIND)}, or cut later"
            )
        if Need.PREVIOUS in rule.needs and order == 0:
            raise ScheduleError(
                f"the first cut (before layer {layer}) is ranked by {rule}; there is no order"
                " to reuse: name another rule"
            )
    if len(waiting := adaptive_rules(parsed)) > MOST_ADAPTIVE_CUTS:
        raise ScheduleError(
            f"{len(waiting)} cuts are adaptive ({', '.join(map(str, waiting))}), and each has its step wait"
            f" for the device; {MOST_ADAPTIVE_CUTS} may be: rank others by {waiting[-1].with_fixed_count()}"
        )
    if (alone := of_one_image(parsed)) and not see_no_question(parsed):
        raise ScheduleError(
            f"rule {alone} ranks the tokens of one image by themselves, and stands beside a rule that"
            f" sees the question ({', '.join(map(str, parsed))}); name rules that see images alone"
        )
    return rates, parsed


def _check_keep(keep: object, layers: int) -> tuple[float, ...]:
    if not isinstance(keep, list | tuple):
        raise ScheduleError(f"keep must be a list of {layers} keep rates, got {show(keep)}")
    if len(keep) != layers:
        raise ScheduleError(
            f"keep has {len(keep)} rates, the model has {layers} layers; give one rate per layer"
        )
    rates: list[float] = []
    for layer, rate in enumerate(keep):
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ScheduleError(
                f"keep[{layer}] is {show(rate)}; every keep rate is a finite number in [0, 1]"
            )
        if rates and rate > rates[-1]:
            raise ScheduleError(
                f"keep[{layer}] is {show(rate)}, above keep[{layer - 1}] = {rates[-1]}; keep"
                " rates never rise with depth: a dropped token does not come back"
            )
        rates.append(float(rate) + 0.0)  # + 0.0 turns -0.0 into 0.0
    return tuple(rates)


def _round_half_up(value: float) -> int:
    # floor(value + .5) would be 1 for the largest float below .5
    whole = math.floor(value)
    return whole + (value - whole >= 0.5)
