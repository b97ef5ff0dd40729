"""DivPrune."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("divprune")
def divprune(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``diverse``: the tokens whose nearest among those kept is farthest
    (DivPrune, arXiv 2503.02175).

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("divprune", geometry, budget, "diverse")
