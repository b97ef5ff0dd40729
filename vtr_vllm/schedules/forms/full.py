"""No reduction."""

from vtr_vllm.schedules.forms.registry import form, named, unreachable
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.keep_rates import check_budget
from vtr_vllm.schedules.schedule import Schedule


@form("full")
def full(geometry: ModelGeometry, budget: float = 1.0) -> Schedule:
    """No reduction; raises InvalidBudget for any budget but 1."""
    if check_budget(budget) != 1.0:
        raise unreachable("full", budget, "exactly 1.0")
    return named("full", geometry, 1.0, [1.0] * geometry.layers, "last", name="full")
