"""P-Sigmoid: the best quality under a budget (arXiv 2412.00556, scenario II).

A family of schedules with few parameters, each of which meets the budget exactly, and Bayesian
optimisation over the parameters. The paper's family has the sigmoid's steepness k and midpoint
alpha; ours may also have a question-blind cut before layer 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule, p_sigmoid
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.proposer import Dimension, Point, Proposer
from vtr_vllm.search.study import Study

PARALLEL = 4
"""Points asked for, and so evaluated, together."""

CONFIRMED = 4
"""Trials of one budget that are compared on all items."""

_SHARE = 0.98  # of the budget, at most, for the layers before the first stage


@dataclass(frozen=True)
class Curves:
    """P-Sigmoid schedules of one stage layout and one set of rank rules."""

    starts: Sequence[int]
    """First layer of each stage that shares one rate."""
    rules: Mapping[int, RankRule]
    """Rank rule of a cut, by layer."""
    blind: bool
    """Whether the rate of a question-blind cut before layer 0 is searched too."""

    def dimensions(self, layers: int) -> list[Dimension]:
        """What is searched: k in 1/layer, alpha as a layer index, and the first cut's share."""
        found = [
            Dimension("k", 1.0 / layers, 60.0 / layers, log=True),
            Dimension("alpha", 0.0, float(layers)),
        ]
        return [*found, Dimension("first", 0.0, 1.0)] if self.blind else found

    def schedule(self, geometry: ModelGeometry, budget: float, point: Point) -> Schedule:
        """The member at ``point``.

        Its third coordinate runs from one rate for all layers (0) to the highest rate that the
        budget allows before the first stage (1), geometrically.
        """
        first_rate = None
        if self.blind:
            highest = min(1.0, _SHARE * budget * geometry.layers / self.starts[0])
            first_rate = budget * (highest / budget) ** point[2] if highest > budget else budget
        return p_sigmoid(geometry, budget, point[0], point[1], self.starts, first_rate, self.rules)


@dataclass(frozen=True)
class Trial:
    """One member of a family and what it was worth."""

    budget: float
    order: int
    parameters: Mapping[str, float]
    value: float
    accuracy: float
    schedule: Schedule
    taken: bool = False
    """Whether it is the one of its budget that the search went on with; ``confirmed`` chooses it."""


def fit_logistic(keep: Sequence[float], first: int) -> Point:
    """k and alpha of c / (1 + exp(k (i - alpha))) through the keep rates of layers ``first`` on.

    Where the paper's form starts: the fit to the model's G-Search curve (its figure 1c).
    """
    layers = len(keep)
    index = np.arange(first, layers)
    rates = np.asarray(keep[first:])

    def residuals(parameters: np.ndarray) -> np.ndarray:
        c, log_k, alpha = parameters
        return c / (1 + np.exp(np.clip(np.exp(log_k) * (index - alpha), -60, 60))) - rates

    start = (max(float(rates[0]), 0.1), math.log(8 / layers), layers / 2)
    bounds = ([0.01, math.log(1 / layers), 0.0], [2.0, math.log(60 / layers), float(layers)])
    _, log_k, alpha = least_squares(residuals, start, bounds=bounds).x
    return math.exp(log_k), float(alpha)


def search_sigmoid(
    study: Study,
    stage: str,
    family: Curves,
    budget: float,
    starts: Sequence[Point],
    trials: int,
    items: int | None,
    seed: int,
) -> list[Trial]:
    """Bayesian optimisation of a family at one budget; returns all trials in their order.

    ``starts`` are points to try first; a point without the family's third coordinate is tried
    at several of its values.
    """
    layers = study.geometry.layers
    dimensions = family.dimensions(layers)
    first = [full for point in starts for full in _complete(point, len(dimensions))]
    proposer = Proposer(dimensions, seed, first)
    found: list[Trial] = []
    while len(found) < trials:
        points = proposer.ask(min(PARALLEL, trials - len(found)))
        schedules = [family.schedule(study.geometry, budget, point) for point in points]
        candidates = [Candidate.of(schedule, study.same_n_vision) for schedule in schedules]
        scored = study.evaluate(stage, candidates, items)
        proposer.tell(points, [evaluation.value for evaluation in scored])
        for point, schedule, evaluation in zip(points, schedules, scored, strict=True):
            found.append(
                Trial(
                    budget=budget,
                    order=len(found),
                    parameters=proposer.named(point),
                    value=evaluation.value,
                    accuracy=evaluation.accuracy,
                    schedule=schedule,
                )
            )
    best = best_trial(found)
    study.progress.step(f"budget {budget}: accuracy {best.accuracy:.3f} after {len(found)} trials")
    return found


def confirmed(study: Study, stage: str, trials: Sequence[Trial]) -> Trial:
    """The best of the leading trials on all items of the study: the greatest of many values on a few of them
    is in part luck."""
    leading: dict[Candidate, Trial] = {}
    for trial in sorted(trials, key=lambda trial: (-trial.value, trial.order)):
        leading.setdefault(Candidate.of(trial.schedule, study.same_n_vision), trial)
    chosen = list(leading)[:CONFIRMED]
    scored = study.evaluate(stage, chosen)
    best = max(scored, key=lambda evaluation: evaluation.value)
    return leading[best.candidate]


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial of highest value, the earliest of equals."""
    return max(trials, key=lambda trial: (trial.value, -trial.order))


def _complete(point: Point, dimensions: int) -> list[Point]:
    if len(point) == dimensions:
        return [point]
    return [(*point, share) for share in (0.0, 0.3, 0.6, 1.0)]  # 0: one cut alone
