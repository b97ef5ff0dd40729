"""LLaVA-PruMerge."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("prumerge")
def prumerge(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``cls+neighbours`` (LLaVA-PruMerge, arXiv 2403.15388, whose count is the
    number of outliers of each image; here it is the budget's, and what is alike is told by the embeddings).
    For CLIP towers only.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("prumerge", geometry, budget, "cls+neighbours")
