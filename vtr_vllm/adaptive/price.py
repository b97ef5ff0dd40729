"""The choice among schedules: the best by probability less price times cost.

The price is such that the mean cost over calibration data meets a budget (the Lagrangian of
ATP-LLaVA's target, eq. 13, which holds on average too). Between two prices the mean leaps; a share of
the prompts, told by their ``draw``, then pays the lower one, so that every mean is met.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vtr_vllm.adaptive.predictor import FloatArray

_HALVINGS = 60
_STEEPEST = 2.0 / 1e-6
"""No probability is worth more than 1: at this price a millionth of cost decides."""


@dataclass(frozen=True)
class Price:
    """What cost weighs against probability."""

    low: float
    """Paid by prompts whose draw is below ``share``."""
    high: float
    """Paid by the others."""
    share: float

    def of(self, draw: float) -> float:
        """The price of a prompt."""
        return self.low if draw < self.share else self.high

    def paid(self, draws: FloatArray) -> FloatArray:
        """``of`` many: ``[n]`` -> ``[n]``."""
        return np.where(draws < self.share, self.low, self.high)


def pick(
    probabilities: Sequence[float],
    costs: Sequence[float],
    price: float,
    confidence: float = 0.0,
) -> int:
    """The member of greatest ``p - price * cost`` among those with p of at least ``confidence``.

    Of equals the cheaper one. Where none is that likely, the dearest.
    """
    chosen = picks(np.asarray([probabilities]), np.asarray(costs), np.asarray([price]), confidence)
    return int(chosen[0])


def picks(
    probabilities: FloatArray, costs: FloatArray, prices: FloatArray, confidence: float = 0.0
) -> npt.NDArray[np.int64]:
    """``pick`` of many: ``[n, members]``, ``[members]``, ``[n]`` -> ``[n]``."""
    order = np.argsort(costs, kind="stable")  # of equals argmax takes the first, the cheapest
    worth = probabilities[:, order] - prices[:, None] * costs[order]
    sure = probabilities[:, order] >= confidence
    sure[~sure.any(axis=1), -1] = True
    return np.asarray(order[np.where(sure, worth, -np.inf).argmax(axis=1)], dtype=np.int64)


def mean_cost(
    probabilities: FloatArray,
    costs: FloatArray,
    draws: FloatArray,
    price: Price,
    confidence: float = 0.0,
) -> float:
    """The mean over prompts: ``[n, members]``, ``[members]``, ``[n]``."""
    return float(costs[picks(probabilities, costs, price.paid(draws), confidence)].mean())


def price_of(
    probabilities: FloatArray,
    costs: FloatArray,
    draws: FloatArray,
    budget: float,
    confidence: float = 0.0,
) -> Price:
    """The lowest price at which the mean cost over these prompts is at most ``budget``.

    The mean comes to less only where one prompt more would take it over, or where no price at all
    does: then nothing has to be saved. A budget below what ``confidence`` allows is met as nearly as
    can be, by the steepest price.
    """

    def mean(low: float, high: float, share: float) -> float:
        return mean_cost(probabilities, costs, draws, Price(low, high, share), confidence)

    if mean(0.0, 0.0, 1.0) <= budget:
        return Price(0.0, 0.0, 1.0)
    low, high = 0.0, _STEEPEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle, middle, 1.0) <= budget else (middle, high)
    # every share is one of the draws: more of them pay the lower price, and cost more
    shares = np.concatenate([[0.0], np.sort(draws), [1.0]])
    first, last = 0, len(shares) - 1
    while last - first > 1:
        middle_share = (first + last) // 2
        fits = mean(low, high, float(shares[middle_share])) <= budget
        first, last = (middle_share, last) if fits else (first, middle_share)
    return Price(low, high, float(shares[first]))
