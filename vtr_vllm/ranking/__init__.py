"""Rank rules: how the vision tokens of one request are ordered at a cut. One file each.

To add one, write a class in a file of its own in ``vtr_vllm.ranking.rules``: see ``RankRule``.
Nothing here loads torch before a rule scores, so schedules can be read where torch is absent.
"""

from vtr_vllm.ranking.attention import check_heads
from vtr_vllm.ranking.inputs import RankInputs
from vtr_vllm.ranking.rule import Need, RankRule
from vtr_vllm.ranking.rules import RULES

__all__ = ["RULES", "Need", "RankInputs", "RankRule", "check_heads"]
