"""Built-in schedules: baselines of the literature, each at a given mean keep rate.

The number in a form's name is always the mean keep rate over ALL layers, whatever number the
method's own paper uses, so that ``fastv-0.5`` and ``pdrop-0.5`` spend the same budget.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from vtr_vllm.errors import InvalidBudget
from vtr_vllm.ranking import RankRule
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.keep_rates import FIRST_ATTENTION_CUT, check_budget, cut_layers, mean
from vtr_vllm.schedules.p_sigmoid import p_sigmoid, solve_increasing
from vtr_vllm.schedules.schedule import Schedule
from vtr_vllm.schedules.strict_json import JSON

Form = Callable[[ModelGeometry, float], Schedule]

_PDROP_LEAST_RATE = 0.25  # below it, cutting earlier is closer to the method than cutting harder
_NAME_DECIMALS = 4


def full(geometry: ModelGeometry, budget: float = 1.0) -> Schedule:
    """No reduction; raises InvalidBudget for any budget but 1."""
    if check_budget(budget) != 1.0:
        raise _unreachable("full", budget, "exactly 1.0")
    return _schedule("full", geometry, 1.0, [1.0] * geometry.layers, "last", name="full")


def uniform(geometry: ModelGeometry, budget: float) -> Schedule:
    """The same rate at every layer: one cut before layer 0, so ranked question-blind (saliency).

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    budget = check_budget(budget)
    return _schedule("uniform", geometry, budget, [budget] * geometry.layers, "saliency")


def fastv(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer index 2, ranked by ``last`` (FastV, arXiv 2403.06764, K=2).

    Reaches 2 / layers .. 1; raises InvalidBudget outside. The paper's R (share dropped) at 32
    layers: mean keep .531 is R = 50%.
    """
    return _one_cut("fastv", geometry, budget, "last")


def random(geometry: ModelGeometry, budget: float) -> Schedule:
    """The counts of ``fastv`` with a random order; raises InvalidBudget as ``fastv``.

    A strong baseline: it beats FastV in UniPruneBench (arXiv 2511.02650).
    """
    return _one_cut("random", geometry, budget, "random")


def pyramid_drop(geometry: ModelGeometry, budget: float) -> Schedule:
    """Rates 1, l, l^2, l^3 in four stages (PyramidDrop, arXiv 2410.17247), l from the budget.

    The cuts are at 1/4, 1/2 and 3/4 of the depth, ranked by ``last``; the method's own l = .5
    has mean keep .469. Where that would need l < .25, the three cuts move towards the input
    together, by the least that keeps l >= .25, the first never before layer index 2. With all
    three moved up, l goes down to 0. Reaches 2 / layers .. 1; raises InvalidBudget outside.
    """
    budget = _check_reach("pdrop", geometry, budget)
    layers = geometry.layers
    depth = layers
    while depth > 0 and mean(_pyramid(layers, depth, _PDROP_LEAST_RATE)) > budget:
        depth -= 1
    if budget == 1.0:
        rate = 1.0
    else:
        rate = solve_increasing(lambda l_: mean(_pyramid(layers, depth, l_)) - budget, 0.0, 1.0)
    parameters: dict[str, JSON] = {
        "rate": rate,
        "boundaries": list(_pyramid_boundaries(depth)),
    }
    keep = _pyramid(layers, depth, rate)
    return _schedule("pdrop", geometry, budget, keep, "last", parameters)


def vtw(geometry: ModelGeometry, budget: float) -> Schedule:
    """All vision tokens dropped at one layer (VTW, arXiv 2405.05803).

    Only multiples of 1 / layers can be reached: InvalidBudget names the two nearest otherwise.
    A budget that rounds to such a multiple at four decimals is taken as the multiple. Nothing
    is ranked, since nothing stays; the cut's rule is ``random`` because that computes nothing.
    """
    budget = check_budget(budget)
    layers = geometry.layers
    layer = round(budget * layers)
    if layer == 0 or round(abs(layer / layers - budget), 9) > 0.5 * 10**-_NAME_DECIMALS:
        below = int(budget * layers)
        near = [round(step / layers, _NAME_DECIMALS) for step in (below, below + 1) if step]
        raise _unreachable("vtw", budget, f"multiples of 1/{layers}, nearest {near}")
    keep = [1.0] * layer + [0.0] * (layers - layer)
    # named by the rounded budget, so that the name can be asked for again
    name = f"vtw-{round(layer / layers, _NAME_DECIMALS)!r}"
    return _schedule("vtw", geometry, layer / layers, keep, "random", {"layer": layer}, name)


def explicit(
    geometry: ModelGeometry,
    keep: Sequence[float],
    rules: Sequence[RankRule],
    name: str = "explicit",
) -> Schedule:
    """Any keep curve with its rules, no budget promised; raises ScheduleError as Schedule."""
    return Schedule(name, geometry, tuple(keep), tuple(rules), method="explicit")


FORMS: Mapping[str, Form] = {
    "full": full,
    "uniform": uniform,
    "fastv": fastv,
    "pdrop": pyramid_drop,
    "vtw": vtw,
    "random": random,
    "p-sigmoid": p_sigmoid,
}
"""Form names to functions; ``full`` is named bare, the others as ``<form>-<budget>``."""

_NUMBERED = "|".join(form for form in FORMS if form != "full")
_FORM_NAME = re.compile(rf"(?P<form>{_NUMBERED})-(?P<budget>[01]\.[0-9]{{1,{_NAME_DECIMALS}}}|1)")


def form_by_name(geometry: ModelGeometry, name: str) -> Schedule | None:
    """The schedule of a form name such as ``full`` or ``fastv-0.5``; None for any other name.

    The budget has at most four decimals. Raises InvalidBudget for one the form cannot meet.
    """
    if name == "full":
        return full(geometry)
    match = _FORM_NAME.fullmatch(name)
    return FORMS[match["form"]](geometry, float(match["budget"])) if match else None


def _one_cut(form: str, geometry: ModelGeometry, budget: float, rule: str) -> Schedule:
    budget = _check_reach(form, geometry, budget)
    rest = geometry.layers - FIRST_ATTENTION_CUT
    rate = 1.0
    if rest > 0:
        # clamped: the least reachable budget may come out an ulp below 0
        rate = max(0.0, (budget * geometry.layers - FIRST_ATTENTION_CUT) / rest)
    keep = [1.0] * min(FIRST_ATTENTION_CUT, geometry.layers) + [rate] * rest
    return _schedule(form, geometry, budget, keep, rule, {"layer": 2, "rate": rate})


def _pyramid_boundaries(depth: int) -> tuple[int, int, int]:
    """Cuts at quarters of ``depth`` layers, distinct, none before layer index 2."""
    first, second, third = (
        max(FIRST_ATTENTION_CUT + step, round((step + 1) * depth / 4)) for step in range(3)
    )
    return first, second, third


def _pyramid(layers: int, depth: int, rate: float) -> list[float]:
    boundaries = _pyramid_boundaries(depth)
    return [rate ** sum(layer >= bound for bound in boundaries) for layer in range(layers)]


def _check_reach(form: str, geometry: ModelGeometry, budget: float) -> float:
    """A budget that two full layers leave room for; raises InvalidBudget."""
    budget = check_budget(budget)
    least = min(1.0, FIRST_ATTENTION_CUT / geometry.layers)
    if budget < least:
        raise _unreachable(form, budget, f"{least} .. 1.0 (layers 0 and 1 run in full)")
    return budget


def _unreachable(form: str, budget: float, reach: str) -> InvalidBudget:
    return InvalidBudget(
        f"{form} cannot meet a mean keep rate of {budget}; it reaches {reach}: choose one of"
        " these, or p-sigmoid, which reaches every budget in (0, 1]"
    )


def _schedule(
    form: str,
    geometry: ModelGeometry,
    budget: float,
    keep: Sequence[float],
    rule: str,
    parameters: Mapping[str, JSON] | None = None,
    name: str | None = None,
) -> Schedule:
    return Schedule(
        name=name or f"{form}-{budget!r}",
        geometry=geometry,
        keep=tuple(keep),
        rules=(RankRule.parse(rule),) * len(cut_layers(keep, 1.0)),
        method=form,
        parameters=parameters or {},
        budget=budget,
    )
