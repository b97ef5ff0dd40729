"""P-Sigmoid: a keep curve of logistic shape that meets a budget exactly.

After Zhao et al., CVPR 2025 (arXiv 2412.00556). The paper's formula was not available in full;
the form here is the one that agrees best with its published FLOPs (within .04 TFLOPs RMS over
five budgets), with "mean over all layers" as the budget:

    r(i) = min(1, c / (1 + exp(k (i - alpha)))),   i = layer index from 0

with layers 0 and 1 in full and c solved for the budget.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from vtr_vllm.errors import ScheduleError, show
from vtr_vllm.ranking import RankRule
from vtr_vllm.schedules.forms.registry import form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.keep_rates import FIRST_ATTENTION_CUT, check_budget, cut_layers
from vtr_vllm.schedules.root_finding import solve_increasing
from vtr_vllm.schedules.schedule import Schedule

# the logistic fit to LLaVA-1.5-7B's G-Search curve (arXiv 2412.00556, figure 1c, digitised),
# as a share of its 32 layers
_FIT_LAYERS, _FIT_K, _FIT_ALPHA = 32, 0.221, 12.25

_MAX_K = 100.0  # already a step within one layer; far beyond it floats could not meet the budget

# the share of the budget that layers before the first attention cut may take; beyond it a
# question-blind cut before layer 0 comes first
_MAX_LEAD_SHARE = 0.75


@form("p-sigmoid")
def p_sigmoid(
    geometry: ModelGeometry,
    budget: float,
    k: float | None = None,
    alpha: float | None = None,
    stages: int | Sequence[int] | None = None,
    first_rate: float | None = None,
    rules: Mapping[int, RankRule] | None = None,
) -> Schedule:
    """A P-Sigmoid schedule whose mean keep rate over all layers is ``budget``, in (0, 1].

    ``k``, in 0..100, is the steepness per layer (0: one rate); ``alpha``, within one depth of
    the decoder, is the layer index of half height. The defaults are the fit to the paper's
    G-Search curve. ``stages`` says which layers share one rate, evaluated at the middle of them:
    the number of groups of layers from index 2 on (default: groups of about three layers, so few
    cuts; ``stages=layers - 2`` is the paper's rate per layer), or the first layer of each group.

    ``first_rate`` is the rate of the layers before the first group and caps the sigmoid; below 1
    it is a cut before layer 0. By default it is 1, and .75 * budget * layers / lead (at least the budget)
    where such ``lead`` full layers would take more than 3/4 of the budget: so every budget in
    (0, 1] is met.
    ``rules`` gives the rank rule of a cut by its layer (default: ``last``; before layer 0
    ``diverse``). Raises InvalidBudget, and ScheduleError for a parameter out of range.
    """
    budget = check_budget(budget)
    layers = geometry.layers
    k = _bounded("k", _FIT_K * _FIT_LAYERS / layers if k is None else k, 0, _MAX_K)
    alpha = _FIT_ALPHA / _FIT_LAYERS * layers if alpha is None else alpha
    alpha = _bounded("alpha", alpha, -layers, 2 * layers)
    bounds = _stage_bounds(layers, stages)
    sizes = [end - start for start, end in pairwise(bounds)]
    lead = bounds[0] if bounds else layers
    first = _first_rate(budget, layers, lead, first_rate)
    middles = [(start + end - 1) / 2 for start, end in pairwise(bounds)]
    log_shape = [-_softplus(k * (middle - alpha)) for middle in middles]
    rates = _solve_scale(log_shape, sizes, budget * layers - lead * first, first)
    keep = [first] * lead
    for rate, size in zip(rates, sizes, strict=True):
        keep += [rate] * size
    given = {0: RankRule.parse("diverse")} | dict(rules or {})
    return Schedule(
        name=f"p-sigmoid-{budget!r}",
        geometry=geometry,
        keep=tuple(keep),
        rules=tuple(given.get(cut, RankRule.parse("last")) for cut in cut_layers(keep, 1.0)),
        method="p-sigmoid",
        parameters={"k": k, "alpha": alpha, "stages": list(bounds[:-1]), "first_rate": first},
        budget=budget,
    )


def _first_rate(budget: float, layers: int, lead: int, given: float | None) -> float:
    """The rate of the ``lead`` layers before the first stage."""
    if lead == layers:
        return budget  # no layer is left for an attention cut
    if given is None:
        return min(1.0, max(budget, _MAX_LEAD_SHARE * budget * layers / lead))
    return _bounded("first_rate", given, budget, min(1.0, budget * layers / lead))


def _stage_bounds(layers: int, stages: int | Sequence[int] | None) -> list[int]:
    """First layer index of each stage, then ``layers``; numbered stages differ by one layer."""
    rest = layers - FIRST_ATTENTION_CUT
    if stages is None:
        if rest <= 0:
            return []
        stages = max(1, round(rest / 3))
    if isinstance(stages, Sequence):
        bounds = [*stages, layers]
        whole = all(isinstance(start, int) for start in stages)
        if not whole or bounds != sorted(set(bounds)) or bounds[0] < FIRST_ATTENTION_CUT:
            raise ScheduleError(
                f"p-sigmoid stages begin at {show(list(stages))}; for {layers} layers give rising"
                f" layer indices in {FIRST_ATTENTION_CUT}..{layers - 1}"
            )
        return bounds if stages else []
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= rest:
        raise ScheduleError(
            f"p-sigmoid stages is {show(stages)}; for {layers} layers give 1..{rest}"
        )
    return [FIRST_ATTENTION_CUT + index * rest // stages for index in range(stages + 1)]


def _solve_scale(log_shape: list[float], sizes: list[int], total: float, cap: float) -> list[float]:
    """Rates min(cap, c * shape) whose sum over layers is ``total``, c found by bisection.

    In logarithms, so that no steepness overflows. The last step is exact: rates below the cap
    share what the capped ones leave.
    """
    if not sizes:
        return []

    def rates_at(log_c: float) -> list[float]:
        return [min(cap, math.exp(min(0.0, log_c + shape))) for shape in log_shape]

    def excess(log_c: float) -> float:
        return _weighted(rates_at(log_c), sizes) - total

    # at -min(log_shape) every stage is capped; 745 lower, the last float above 0 is passed
    rates = rates_at(solve_increasing(excess, -max(log_shape) - 745.0, -min(log_shape)))
    free = [0.0 if rate == cap else rate for rate in rates]
    free_sum = _weighted(free, sizes)
    if free_sum == 0.0:
        return rates
    capped_sum = _weighted([rate if rate == cap else 0.0 for rate in rates], sizes)
    factor = max(0.0, (total - capped_sum) / free_sum)
    exact = [cap if rate == cap else rate * factor for rate in rates]
    # with nearly equal shapes rounding may let a rate rise by an ulp: a rate never rises
    return list(accumulate(exact, min, initial=cap))[1:]


def _weighted(rates: list[float], sizes: list[int]) -> float:
    return math.fsum(rate * size for rate, size in zip(rates, sizes, strict=True))


def _softplus(value: float) -> float:
    """log(1 + exp(value)) without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _bounded(label: str, value: float, low: float, high: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ScheduleError(
            f"p-sigmoid {label} is {show(value)}; give a number in {low:g}..{high:g}"
        )
    return float(value)
