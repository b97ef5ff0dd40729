"""Rank rules: how the vision tokens of one request are scored at a cut. One file each.

To add one: write a module with ``score(inputs, rule)``, name it in ``RULES``, and in
``vtr_vllm.schedules.rank_rule``; the conformance table in the tests then covers it.
"""

from collections.abc import Callable

import torch

from vtr_vllm.reduction.ranking import cls, instruction, last, previous, random, saliency
from vtr_vllm.reduction.ranking.inputs import Attention, RankInputs
from vtr_vllm.schedules import RankRule

__all__ = ["RULES", "Attention", "RankInputs", "score_rows"]

RULES: dict[str, Callable[[RankInputs, RankRule], torch.Tensor]] = {
    "cls": cls.score,
    "instruction": instruction.score,
    "last": last.score,
    "previous": previous.score,
    "random": random.score,
    "saliency": saliency.score,
}


def score_rows(inputs: RankInputs, rule: RankRule) -> torch.Tensor:
    """Scores [rows] float32 of one request's rows; only those of vision tokens mean something."""
    return RULES[rule.score](inputs, rule)
