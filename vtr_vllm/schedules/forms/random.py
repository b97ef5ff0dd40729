"""The order that every other must beat."""

from vtr_vllm.schedules.forms.registry import behind_two_layers, form
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.schedule import Schedule


@form("random")
def random(geometry: ModelGeometry, budget: float) -> Schedule:
    """The counts of ``fastv`` with a random order; raises InvalidBudget as ``fastv``.

    A strong baseline: it beats FastV in UniPruneBench (arXiv 2511.02650).
    """
    return behind_two_layers("random", geometry, budget, "random")
