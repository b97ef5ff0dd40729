"""VisionZip."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("visionzip")
def visionzip(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``cls+nearest`` (VisionZip, arXiv 2412.04467, which merges what it drops into
    tokens of an even stride instead of the kept ones). For CLIP towers only.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("visionzip", geometry, budget, "cls+nearest")
