"""The choice among schedules: the best by probability less price times cost.

The price is such that the mean cost over calibration data meets a budget (the Lagrangian of
ATP-LLaVA's target, eq. 13, which holds on average too). Between two prices the mean leaps; a share of
the prompts, told by their ``draw``, then pays the lower one, so that every mean is met.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vtr_vllm.adaptive.predictor import FloatArray

_ALIKE = 1e-7
"""Prices that differ by less, relatively, count as one: rounding must not decide between them."""
_EPS = 1e-12


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


class Prices:
    """What each budget costs on calibration data: prices, and where prompts change their schedule.

    ``probabilities`` is ``[n, members]``, ``costs`` ``[members]``, ``draws`` ``[n]``. As the price rises
    a prompt walks down the upper hull of its (cost, probability) points, so all prices at which
    anything changes are known at once, and a budget is one look among them.
    """

    def __init__(
        self,
        probabilities: FloatArray,
        costs: FloatArray,
        draws: FloatArray,
        confidence: float = 0.0,
    ) -> None:
        self._known = probabilities, costs, confidence
        self._draws = draws
        prompts, prices, saved = _walk(probabilities, costs, confidence)
        order = np.argsort(prices, kind="stable")
        self._prompts, self._saved = prompts[order], saved[order] / len(draws)
        ascending = prices[order]
        apart = np.diff(ascending) > _ALIKE * ascending[1:]
        self._starts = np.concatenate([[0], 1 + np.flatnonzero(apart)])[: len(ascending)]
        self._prices = ascending[self._starts]
        free = picks(probabilities, costs, np.zeros(len(draws)), confidence)
        self._free = float(costs[free].mean())
        """Mean cost at price 0."""
        self._means = self._free - np.cumsum(np.add.reduceat(self._saved, self._starts))
        """[prices] mean cost once all have changed that change at that price."""

    def of(self, budget: float) -> Price:
        """The lowest price at which the mean cost over these prompts is at most ``budget``.

        The mean comes to less only where one prompt more would take it over, or where no price at
        all does: then nothing has to be saved. A budget below what ``confidence`` allows is met as
        nearly as can be, by the steepest price.
        """
        if self._free <= budget + _EPS:
            return Price(0.0, 0.0, 1.0)
        place = int(np.searchsorted(-self._means, -(budget + _EPS)))
        if place == len(self._means):
            steepest = self._between(len(self._prices))
            return Price(steepest, steepest, 1.0)
        ends = [*self._starts[1:], len(self._prompts)]
        group = slice(self._starts[place], ends[place])
        movers, where = np.unique(self._prompts[group], return_inverse=True)
        more = np.bincount(where, self._saved[group])
        order = np.argsort(self._draws[movers], kind="stable")
        spent = self._means[place] + np.cumsum(more[order])
        dearer = min(int(np.searchsorted(spent, budget + _EPS, "right")), len(order) - 1)
        share = float(self._draws[movers][order][dearer])
        return Price(self._between(place), self._between(place + 1), share)

    def reached(self, price: Price) -> tuple[float, float]:
        """Mean cost and mean probability over these prompts at ``price``."""
        probabilities, costs, confidence = self._known
        chosen = picks(probabilities, costs, price.paid(self._draws), confidence)
        return float(costs[chosen].mean()), float(
            probabilities[np.arange(len(chosen)), chosen].mean()
        )

    def _between(self, place: int) -> float:
        """A price below that of ``place`` and above the one before, as far from both as can be."""
        below = self._prices[place - 1] if place else 0.0
        above = self._prices[place] if place < len(self._prices) else 2 * below + 1
        return float((below + above) / 2)


def _walk(probabilities: FloatArray, costs: FloatArray, confidence: float) -> tuple[Any, Any, Any]:
    """Every change of a prompt as the price rises from 0: ``[changes]`` prompt, price, cost saved."""
    order = np.argsort(costs, kind="stable")
    sorted_costs, likely = costs[order], probabilities[:, order]
    sure = likely >= confidence
    sure[~sure.any(axis=1), -1] = True
    moving = np.arange(len(likely))
    now = np.where(sure, likely, -np.inf).argmax(axis=1)
    price = np.zeros(len(likely))
    found: list[tuple[Any, Any, Any]] = []
    while len(moving):
        saved = sorted_costs[now[moving], None] - sorted_costs
        cheaper = sure[moving] & (saved > 0)
        moving, saved, cheaper = (each[cheaper.any(axis=1)] for each in (moving, saved, cheaper))
        lost = likely[moving, now[moving]][:, None] - likely[moving]
        slopes = np.divide(lost, saved, out=np.full_like(lost, np.inf), where=cheaper)
        then = slopes.argmin(axis=1)  # of equals the cheapest, which comes first
        rows = np.arange(len(moving))
        # the hull is convex; rounding must not make it turn back
        price[moving] = np.maximum(price[moving], slopes[rows, then])
        found.append((moving, price[moving], saved[rows, then]))
        now[moving] = then
    prompts, prices, savings = zip(*found, strict=True)
    return np.concatenate(prompts), np.concatenate(prices), np.concatenate(savings)
