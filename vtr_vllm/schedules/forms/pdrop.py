"""PyramidDrop."""

from vtr_vllm.schedules.forms.registry import form, in_stages
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("pdrop")
def pyramid_drop(geometry: ModelGeometry, budget: float) -> Schedule:
    """Rates 1, l, l^2, l^3 in four stages (PyramidDrop, arXiv 2410.17247), l from the budget.

    The cuts are at 1/4, 1/2 and 3/4 of the depth, ranked by ``last``; the method's own l = .5
    has mean keep .469. Where that would need l < .25, the three cuts move towards the input
    together, by the least that keeps l >= .25, the first never before layer index 2. With all
    three moved up, l goes down to 0. Reaches 2 / layers .. 1; raises InvalidBudget outside.
    """
    return in_stages("pdrop", geometry, budget, (0.25, 0.5, 0.75), 0.25, "last")
