"""What a form is: a function of one file, under a name; and what several of them share."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from vtr_vllm.errors import InvalidBudget
from vtr_vllm.ranking import RankRule
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.keep_rates import FIRST_ATTENTION_CUT, check_budget, cut_layers, mean
from vtr_vllm.schedules.root_finding import solve_increasing
from vtr_vllm.schedules.schedule import Schedule
from vtr_vllm.schedules.strict_json import JSON

Form = Callable[[ModelGeometry, float], Schedule]

_Function = TypeVar("_Function", bound=Callable[..., Schedule])

NAME_DECIMALS = 4
"""Of the budget in a form's name, at most."""

FORMS: dict[str, Form] = {}
"""Form names to functions; ``full`` is named bare, the others as ``<form>-<budget>``."""


def form(name: str) -> Callable[[_Function], _Function]:
    """Register a function as the form ``name``."""

    def register(function: _Function) -> _Function:
        if name in FORMS:
            raise TypeError(f"two forms are named {name}: {FORMS[name]}, {function}")
        FORMS[name] = function
        return function

    return register


def form_by_name(geometry: ModelGeometry, name: str) -> Schedule | None:
    """The schedule of a form name such as ``full`` or ``fastv-0.5``; None for any other name.

    The budget has at most four decimals. Raises InvalidBudget for one the form cannot meet.
    """
    if name == "full":
        return FORMS["full"](geometry, 1.0)
    kind, _, budget = name.rpartition("-")
    known = kind in FORMS and kind != "full"
    if not known or not re.fullmatch(rf"[01]\.[0-9]{{1,{NAME_DECIMALS}}}|1", budget, re.ASCII):
        return None
    return FORMS[kind](geometry, float(budget))


def before_layer_0(name: str, geometry: ModelGeometry, budget: float, rule: str) -> Schedule:
    """One cut before layer 0 by a rule that does not see the question.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    budget = check_budget(budget)
    return named(name, geometry, budget, [budget] * geometry.layers, rule)


def behind_two_layers(name: str, geometry: ModelGeometry, budget: float, rule: str) -> Schedule:
    """One cut before layer index 2; raises InvalidBudget below 2 / layers."""
    budget = check_reach(name, geometry, budget)
    rest = geometry.layers - FIRST_ATTENTION_CUT
    rate = 1.0
    if rest > 0:
        # clamped: the least reachable budget may come out an ulp below 0
        rate = max(0.0, (budget * geometry.layers - FIRST_ATTENTION_CUT) / rest)
    keep = [1.0] * min(FIRST_ATTENTION_CUT, geometry.layers) + [rate] * rest
    return named(name, geometry, budget, keep, rule, {"layer": 2, "rate": rate})


def check_reach(name: str, geometry: ModelGeometry, budget: float) -> float:
    """A budget that two full layers leave room for; raises InvalidBudget."""
    budget = check_budget(budget)
    least = min(1.0, FIRST_ATTENTION_CUT / geometry.layers)
    if budget < least:
        raise unreachable(name, budget, f"{least} .. 1.0 (layers 0 and 1 run in full)")
    return budget


def unreachable(name: str, budget: float, reach: str) -> InvalidBudget:
    """The error that says what a form can meet."""
    return InvalidBudget(
        f"{name} cannot meet a mean keep rate of {budget}; it reaches {reach}: choose one of"
        " these, or p-sigmoid, which reaches every budget in (0, 1]"
    )


def named(
    method: str,
    geometry: ModelGeometry,
    budget: float,
    keep: Sequence[float],
    rule: str,
    parameters: Mapping[str, JSON] | None = None,
    name: str | None = None,
) -> Schedule:
    """The schedule of a form, with one rule at all of its cuts."""
    return Schedule(
        name=name or f"{method}-{budget!r}",
        geometry=geometry,
        keep=tuple(keep),
        rules=(RankRule.parse(rule),) * len(cut_layers(keep, 1.0)),
        method=method,
        parameters=parameters or {},
        budget=budget,
    )


def in_stages(
    name: str,
    geometry: ModelGeometry,
    budget: float,
    shares: Sequence[float],
    least_rate: float,
    rule: str,
) -> Schedule:
    """Rates 1, r, r^2 .. with cuts at ``shares`` of the depth, r from the budget.

    Where that would need r < ``least_rate``, the cuts move towards the input together, by the least
    that keeps r at it, the first never before layer index 2. With all of them moved up, r goes down
    to 0. Reaches 2 / layers .. 1; raises InvalidBudget outside.
    """
    budget = check_reach(name, geometry, budget)
    layers = geometry.layers

    def rates(depth: int, rate: float) -> list[float]:
        bounds = boundaries(depth)
        return [rate ** sum(layer >= bound for bound in bounds) for layer in range(layers)]

    def boundaries(depth: int) -> list[int]:
        placed = enumerate(shares)
        return [max(FIRST_ATTENTION_CUT + step, round(share * depth)) for step, share in placed]

    depth = layers
    while depth > 0 and mean(rates(depth, least_rate)) > budget:
        depth -= 1
    rate = 1.0
    if budget < 1.0:
        rate = solve_increasing(lambda r: mean(rates(depth, r)) - budget, 0.0, 1.0)
    parameters: dict[str, JSON] = {"rate": rate, "boundaries": list(boundaries(depth))}
    return named(name, geometry, budget, rates(depth, rate), rule, parameters)
