"""VTW."""

from vtr_vllm.schedules.forms.registry import NAME_DECIMALS, form, named, unreachable
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.keep_rates import check_budget
from vtr_vllm.schedules.schedule import Schedule


@form("vtw")
def vtw(geometry: ModelGeometry, budget: float) -> Schedule:
    """All vision tokens dropped at one layer (VTW, arXiv 2405.05803).

    Only multiples of 1 / layers can be reached: InvalidBudget names the two nearest otherwise.
    A budget that rounds to such a multiple at four decimals is taken as the multiple. Nothing
    is ranked, since nothing stays; the cut's rule is ``random`` because that computes nothing.
    """
    budget = check_budget(budget)
    layers = geometry.layers
    layer = round(budget * layers)
    if layer == 0 or round(abs(layer / layers - budget), 9) > 0.5 * 10**-NAME_DECIMALS:
        below = int(budget * layers)
        near = [round(step / layers, NAME_DECIMALS) for step in (below, below + 1) if step]
        raise unreachable("vtw", budget, f"multiples of 1/{layers}, nearest {near}")
    keep = [1.0] * layer + [0.0] * (layers - layer)
    # named by the rounded budget, so that the name can be asked for again
    name = f"vtw-{round(layer / layers, NAME_DECIMALS)!r}"
    return named("vtw", geometry, layer / layers, keep, "random", {"layer": layer}, name)
