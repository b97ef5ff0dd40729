"""Comparisons of made-up answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.rankings.once import Pair, describe, rank_once
from vtr_vllm.demo.world import KINDS
from vtr_vllm.schedules import ModelGeometry, p_sigmoid

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)


def comparison(budget: float) -> dict[str, Any]:
    schedule = p_sigmoid(GEOMETRY, budget)
    kinds = np.array([*KINDS, *KINDS])
    each = np.ones(len(kinds), dtype=np.bool_)
    once = kinds != KINDS[1]
    return describe(
        Pair("p-sigmoid", budget, schedule, rank_once(schedule)), each, once, kinds, 144
    )
