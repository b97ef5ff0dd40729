"""Which K of many schedules are worth most together, when each prompt takes the one it is predicted
to need."""

from collections.abc import Sequence

import numpy as np

from vtr_vllm.adaptive.predictor import FloatArray
from vtr_vllm.adaptive.price import Prices

_SWAPS = 3
"""Rounds of trying every schedule in the place of every member."""


def prices(
    predicted: FloatArray, costs: FloatArray, draws: FloatArray, budgets: Sequence[float]
) -> list[float]:
    """The price of each budget, were all schedules members: ``[n, schedules]``, ``[schedules]``."""
    known = Prices(predicted, costs, draws)
    return [known.of(budget).high for budget in budgets]


def select(
    predicted: FloatArray, costs: FloatArray, priced: Sequence[float], members: int
) -> list[int]:
    """Indices of the members, ascending in cost: greedily, then by exchange.

    What is maximised is the mean over prices and prompts of the best ``p - price * cost``; it is
    submodular in the set, so greed alone reaches 1 - 1/e of the best (Nemhauser et al., 1978).
    The cheapest schedule is always a member: it is what a low budget can fall to.
    """
    worth = np.stack([predicted - price * costs for price in priced])
    chosen = [int(np.argmin(costs))]
    while len(chosen) < min(members, len(costs)):
        chosen.append(_best_addition(worth, chosen))
    for _ in range(_SWAPS):
        before = sorted(chosen)
        for leaving in chosen[1:]:
            left = [index for index in chosen if index != leaving]
            chosen = [*left, _best_addition(worth, left)]
        if sorted(chosen) == before:
            break
    return sorted(chosen, key=lambda index: (costs[index], index))


def _best_addition(worth: FloatArray, chosen: Sequence[int]) -> int:
    """The schedule that, added to ``chosen``, is worth most; an earlier one of equals."""
    so_far = worth[:, :, list(chosen)].max(axis=2)
    gains = np.maximum(worth, so_far[:, :, None]).mean(axis=(0, 1))
    gains[list(chosen)] = -np.inf
    return int(gains.argmax())
