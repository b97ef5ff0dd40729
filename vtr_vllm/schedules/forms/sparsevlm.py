"""SparseVLM."""

from vtr_vllm.schedules.forms.registry import form, in_stages
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("sparsevlm")
def sparsevlm(geometry: ModelGeometry, budget: float) -> Schedule:
    """Rates r, r^2, r^3 behind cuts at 1/16, 3/16 and 15/32 of the depth, by ``instruction+recycled``
    (SparseVLM, arXiv 2410.04417: layers 2, 6 and 15 of 32, with a table of counts; of the words only those
    ask that the image is like, and what is recycled becomes tokens of its own). Where r < .25 would be
    needed, the cuts move towards the input, as those of ``pdrop``.

    Reaches 2 / layers .. 1; raises InvalidBudget outside.
    """
    return in_stages(
        "sparsevlm", geometry, budget, (1 / 16, 3 / 16, 15 / 32), 0.25, "instruction+recycled"
    )
