"""Matryoshka queries."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("matryoshka")
def matryoshka(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``prefix``: an image's first tokens (MQT, arXiv 2405.19315). For models
    trained so; others lose the lower end of the image.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("matryoshka", geometry, budget, "prefix")
