"""LLaVA-PruMerge+."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("prumerge-plus")
def prumerge_plus(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``cls-spread+nearest``: half of what is kept has the most attention, half
    lies evenly over the image (LLaVA-PruMerge+, arXiv 2403.15388, whose count is the number of outliers of
    each image, and which weighs what it merges by attention). For CLIP towers only.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("prumerge-plus", geometry, budget, "cls-spread+nearest")
