"""FoPru, row strategy."""

from vtr_vllm.schedules.forms.registry import before_layer_0, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("fopru-row")
def fopru_row(geometry: ModelGeometry, budget: float) -> Schedule:
    """One cut before layer 0 by ``cls-rows``: the rows of the image with most attention in the tower
    (FoPru, arXiv 2411.14164, row strategy), the last row that is kept perhaps in part. For CLIP towers only.

    Reaches every budget in (0, 1]; raises InvalidBudget outside.
    """
    return before_layer_0("fopru-row", geometry, budget, "cls-rows")
