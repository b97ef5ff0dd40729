"""FEATHER."""

from vtr_vllm.schedules.forms.registry import form, in_stages
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("feather")
def feather(geometry: ModelGeometry, budget: float) -> Schedule:
    """Rates 1, r, r^2 behind cuts at 1/4 and 1/2 of the depth, by attention without rotary positions
    (FEATHER, arXiv 2412.13180: r = .3 at layers 8 and 16 of 32), r from the budget.

    The paper keeps an even grid besides at the first cut; here the ranking alone decides. Where r < .3
    would be needed, the cuts move towards the input, as those of ``pdrop``. Reaches 2 / layers .. 1;
    raises InvalidBudget outside.
    """
    return in_stages("feather", geometry, budget, (0.25, 0.5), 0.3, "last-norope")
