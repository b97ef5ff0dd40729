"""GOTS."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("gots")
def gots(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``orthogonal``: the tokens that add most to the span of those kept
    (GOTS, arXiv 2607.23913).

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("gots", geometry, budget, "orthogonal")
