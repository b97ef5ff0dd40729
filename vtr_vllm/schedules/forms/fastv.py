"""FastV."""

from vtr_vllm.schedules.forms.registry import behind_two_layers, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("fastv")
def fastv(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer index 2, ranked by ``last`` (FastV, arXiv 2403.06764, K=2).

    Reaches 2 / layers .. 1; raises InvalidBudget outside. The paper's R (share dropped) at 32
    layers: mean keep .531 is R = 50%.
    """
    return behind_two_layers("fastv", geometry, budget, "last")
