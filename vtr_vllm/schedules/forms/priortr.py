"""PriorTR."""

from vtr_vllm.schedules.forms.registry import behind_two_layers, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("priortr")
def priortr(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer index 2, ranked by ``last-prior``: attention less what a null text would give
    (PriorTR, arXiv 2606.24156; here the null text is the first token behind the images).

    Reaches 2 / layers .. 1; raises InvalidBudget outside.
    """
    return behind_two_layers("priortr", geometry, budget, "last-prior")
