"""One rate at every layer."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("uniform")
def uniform(geometry: ModelGeometry, budget: float) -> Schedule:
    """The same rate at every layer: one cut before layer 0, so ranked question-blind (saliency).

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("uniform", geometry, budget, "saliency")
