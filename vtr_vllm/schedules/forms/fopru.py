"""FoPru, rank strategy."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("fopru")
def fopru(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``cls``: the tokens of most attention in the tower (FoPru, arXiv
    2411.14164, rank strategy; of whom and in which layer its abstract does not say, so this is ``vtc-cls`` in
    all but name). For CLIP towers only.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("fopru", geometry, budget, "cls")
