"""VTC-CLS."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("vtc-cls")
def vtc_cls(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``cls``: what the tower's CLS token attends to (VTC-CLS,
    arXiv 2412.05819, which sums over several of the tower's layers; here it is the one that gives the
    features). For CLIP towers only.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("vtc-cls", geometry, budget, "cls")
