"""iLLaVA."""

from vtr_vllm.schedules.forms.registry import form, in_stages
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("illava")
def illava(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut at 1/4 of the depth by ``last+tail``, its rate from the budget (iLLaVA, arXiv 2412.06263: layer
    8 of 32, and merges in the tower besides). Where that is too late for the budget, it moves towards the
    input.

    Reaches 2 / layers .. 1; raises InvalidBudget outside.
    """
    return in_stages("illava", geometry, budget, (0.25,), 0.0, "last+tail")
