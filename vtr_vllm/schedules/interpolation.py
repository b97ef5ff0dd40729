"""A schedule between two: linear in the keep rates, so a budget between theirs is met exactly."""

from dataclasses import replace
from itertools import accumulate

from vtr_vllm.errors import InvalidBudget, ScheduleError
from vtr_vllm.ranking import RankRule
from vtr_vllm.ranking.rules.previous import Previous
from vtr_vllm.schedules.keep_rates import cut_layers
from vtr_vllm.schedules.schedule import Schedule


def interpolate(lower: Schedule, upper: Schedule, budget: float) -> Schedule:
    """The schedule of ``budget`` on the line from ``lower`` to ``upper``.

    Per layer the keep rate is (1 - t) * lower + t * upper, with t in [0, 1] the place of
    ``budget`` between the two budgets; at t = 0 or 1 keep rates and rules are the neighbour's
    own. A cut takes the order of the neighbour that cuts there; where both do, of the one with
    the nearer budget, ``upper`` at t = 1/2. The per-image floor is the larger of the two: what
    either promises an image holds between them.

    Raises GeometryMismatch for schedules of two models, ScheduleError unless both state a
    budget and the lower one's is less, InvalidBudget for a budget outside the two.
    """
    upper.check_fits(lower.geometry)
    if lower.budget is None or upper.budget is None or not lower.budget < upper.budget:
        raise ScheduleError(
            f"cannot interpolate from {lower.name} (budget {lower.budget}) to {upper.name}"
            f" (budget {upper.budget}); give two schedules with rising budgets"
        )
    if not lower.budget <= budget <= upper.budget:
        raise InvalidBudget(
            f"budget {budget} is not between {lower.name} ({lower.budget}) and {upper.name}"
            f" ({upper.budget}); choose the schedules on both sides of it"
        )
    t = (budget - lower.budget) / (upper.budget - lower.budget)
    rates = (_mix(low, high, t) for low, high in zip(lower.keep, upper.keep, strict=True))
    # rounding may let a rate rise by an ulp: a rate never rises
    keep = tuple(accumulate(rates, min, initial=1.0))[1:]
    return Schedule(
        name=f"interpolated-{budget!r}",
        geometry=lower.geometry,
        keep=keep,
        rules=_rules(cut_layers(keep, 1.0), lower, upper, t),
        method="interpolated",
        parameters={"lower": lower.name, "upper": upper.name, "t": t},
        budget=budget,
        per_image_floor=max(lower.per_image_floor, upper.per_image_floor),
    )


def _mix(low: float, high: float, t: float) -> float:
    # equal rates stay equal to the last bit: otherwise a layer kept in full could get a cut
    return low if low == high else (1 - t) * low + t * high


_Order = tuple[RankRule, int]
"""A rank rule that scores, and the layer before which the neighbour applies it."""


def _rules(
    cuts: tuple[int, ...], lower: Schedule, upper: Schedule, t: float
) -> tuple[RankRule, ...]:
    """One rule per cut; ``previous`` exactly where a cut keeps the order of the cut before it.

    Rates fall only where a neighbour's do, so every cut has an order. A ``previous`` whose
    neighbour did not rank at the last cut becomes the rule that it stood for.
    """
    near, far = (lower, upper) if t < 0.5 else (upper, lower)
    orders = _orders(far) | _orders(near)
    rules: list[RankRule] = []
    current: _Order | None = None
    for cut in cuts:
        order, merge = orders[cut]
        rules.append(replace(Previous() if order == current else order[0], merge=merge))
        current = order
    return tuple(rules)


def _orders(schedule: Schedule) -> dict[int, tuple[_Order, str]]:
    """The order at each cut of a schedule, ``previous`` having that of the cut before it; and the
    cut's own merge."""
    orders: dict[int, tuple[_Order, str]] = {}
    order: _Order | None = None
    for cut, rule in zip(schedule.cuts, schedule.rules, strict=True):
        order = order if order and isinstance(rule, Previous) else (rule, cut)
        orders[cut] = order, rule.merge
    return orders
