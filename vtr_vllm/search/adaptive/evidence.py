"""What a family is worth on data that it was not made with, beside one schedule for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtr_vllm.adaptive import Prices, Prompt, ScheduleFamily
from vtr_vllm.adaptive.predictor import FloatArray
from vtr_vllm.adaptive.price import Price, picks
from vtr_vllm.search.adaptive import fitting
from vtr_vllm.search.statistics import beside_full

Row = dict[str, Any]

_LEAST_OTHERS = 10
"""Prompts of other kinds, at least, from which one kind is predicted."""


@dataclass(frozen=True)
class Outcomes:
    """Prompts of one data set, and how each schedule scored on them."""

    prompts: Sequence[Prompt]
    kinds: Sequence[str | None]
    scores: FloatArray
    """[n, members]"""
    full: Sequence[float]
    """Without reduction."""
    groups: Sequence[int]
    """Of each prompt: those of one group share images."""


def rows(
    family: ScheduleFamily,
    calibration: Outcomes,
    heldout: Outcomes,
    budgets: Sequence[float],
    seed: int,
) -> list[Row]:
    """A row a budget and a way of choosing, on held-out data; the price is always calibration's.

    ``both`` is what is served. ``words`` and ``images`` see only these. ``unseen kind``: each prompt is
    judged by a predictor that saw no prompt of its kind. ``oracle``: the cheapest schedule that
    answers right, at the price at which that meets the budget on this very data; no chooser can.
    """
    predicted = {"both": (family.calibration.predictions, _predict(family, heldout))}
    predicted |= {
        name: _fitted(mask, calibration, heldout, seed)
        for name, mask in (("words", fitting.only_words), ("images", fitting.only_images))
    }
    unseen = _unseen(predicted["both"][1], calibration, heldout, seed)
    if unseen is not None:
        predicted["unseen kind"] = family.calibration.predictions, unseen
    draws = family.calibration.draws
    found = []
    for budget in budgets:
        if budget < family.least:
            continue
        for name, (known, guessed) in predicted.items():
            prices = Prices(
                known[: len(draws)], family.costs, draws
            )  # a file keeps so many at most
            price = prices.of(budget)
            promised, _ = prices.reached(price)
            found.append(_row(name, budget, promised, family, heldout, guessed, price))
        own = np.array([prompt.draw for prompt in heldout.prompts])
        price = Prices(heldout.scores, family.costs, own).of(budget)
        found.append(_row("oracle", budget, budget, family, heldout, heldout.scores, price))
    return found


def _predict(family: ScheduleFamily, heldout: Outcomes) -> FloatArray:
    return fitting.predictions(family.predictor, heldout.prompts)


def _fitted(
    mask: Any, calibration: Outcomes, heldout: Outcomes, seed: int
) -> tuple[FloatArray, FloatArray]:
    """What a predictor that sees a part says: of calibration across folds, and of held-out data."""
    predictor, across = fitting.fit(
        mask(fitting.matrix(calibration.prompts)), calibration.scores, calibration.groups, seed
    )
    return across, fitting.predictions(predictor, heldout.prompts)


def _unseen(
    guessed: FloatArray, calibration: Outcomes, heldout: Outcomes, seed: int
) -> FloatArray | None:
    """Predictions of each prompt without its kind; None where there are no two kinds.

    Of a kind beside which there are too few prompts to learn from, those of the whole family.
    """
    kinds = sorted({kind for kind in calibration.kinds if kind is not None})
    if len(kinds) < 2:
        return None
    found = guessed.copy()
    matrix = fitting.matrix(calibration.prompts)
    for kind in kinds:
        others = np.array([each != kind for each in calibration.kinds])
        own = np.array([each == kind for each in heldout.kinds])
        if others.sum() < _LEAST_OTHERS:
            continue
        groups = np.array(calibration.groups)[others].tolist()
        known = matrix[np.flatnonzero(others)], calibration.scores[others], groups
        predictor, _ = fitting.fit(*known, seed)
        if own.any():
            prompts = [p for p, is_own in zip(heldout.prompts, own, strict=True) if is_own]
            found[own] = fitting.predictions(predictor, prompts)
    return found


def _row(
    name: str,
    budget: float,
    promised: float,
    family: ScheduleFamily,
    heldout: Outcomes,
    predicted: FloatArray,
    price: Price,
) -> Row:
    draws = np.array([prompt.draw for prompt in heldout.prompts])
    chosen = picks(predicted, family.costs, price.paid(draws))
    scores = heldout.scores[np.arange(len(chosen)), chosen]
    counts = np.bincount(chosen, minlength=len(family.members))
    spent = float(family.costs[chosen].mean())
    found = row(name, budget, promised, spent, scores, heldout.full, heldout.groups)
    return found | {"mix": [round(float(share), 4) for share in counts / len(chosen)]}


def row(
    name: str,
    budget: float,
    promised: float,
    spent: float,
    scores: Sequence[float] | FloatArray,
    full: Sequence[float],
    groups: Sequence[int],
) -> Row:
    """A score with its 95% interval, beside no reduction on the same prompts."""
    values = [float(score) for score in scores]
    return {
        "chooser": name,
        "budget": budget,
        "promised": promised,
        "spent": spent,
        **beside_full(values, full, groups),
    }


def table(splits: Mapping[str, Sequence[Row]]) -> str:
    """The rows in Markdown, a table a split."""
    lines = []
    for name, found in splits.items():
        lines += [f"**{name}**", "", "| budget | chooser | spent | score | 95% | minus full |"]
        lines.append("|---:|---|---:|---:|---|---:|")
        for each in found:
            lines.append(
                f"| {each['budget']:g} | {each['chooser']} | {each['spent']:.3f} |"
                f" {100 * each['score']:.1f} | {100 * each['low']:.1f}-{100 * each['high']:.1f} |"
                f" {100 * each['minus_full']['difference']:+.1f} |"
            )
        lines.append("")
    return "\n".join(lines)
