"""How likely each schedule of a family is to answer a prompt right: logistic regressions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vtr_vllm.adaptive.features import WIDTH
from vtr_vllm.errors import ScheduleError, show
from vtr_vllm.schedules.strict_json import check_keys

FloatArray = npt.NDArray[np.float64]

DIGITS = 5
"""Significant digits of a weight in a file: far finer than what data can tell."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """One logistic regression a member, over ``features``."""

    places: tuple[int, ...]
    """The places of the features that have a weight, ascending in [0, WIDTH)."""
    weights: FloatArray
    """[places, members]"""
    bias: FloatArray
    """[members]"""

    def __post_init__(self) -> None:
        shape = (len(self.places), len(self.bias))
        if self.weights.shape != shape or not len(self.bias):
            raise ScheduleError(
                f"a predictor has weights of shape {list(self.weights.shape)}, and places and bias"
                f" for {list(shape)}; fit it again"
            )
        rising = all(a < b for a, b in zip(self.places, self.places[1:], strict=False))
        inside = not self.places or (self.places[0] >= 0 and self.places[-1] < WIDTH)
        if not rising or not inside:
            raise ScheduleError(
                f"places of a predictor must rise in 0..{WIDTH - 1}, not {show(list(self.places))}"
            )
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            raise ScheduleError("a weight of a predictor is no finite number; fit it again")

    @cached_property
    def _row(self) -> dict[int, int]:
        return {place: row for row, place in enumerate(self.places)}

    def predict(self, found: Mapping[int, float]) -> tuple[float, ...]:
        """Probability of a right answer for each member, from the features of a prompt."""
        pairs = [
            (row, value)
            for place, value in found.items()
            if (row := self._row.get(place)) is not None
        ]
        logits = self.bias
        if pairs:
            rows, values = zip(*pairs, strict=True)
            logits = logits + np.asarray(values) @ self.weights[list(rows)]
        return tuple(_sigmoid(float(logit)) for logit in logits)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, rounded to DIGITS digits."""
        return {
            "places": list(self.places),
            "weights": [_rounded(row) for row in self.weights],
            "bias": _rounded(self.bias),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of ``to_dict``; raises ScheduleError."""
        if not isinstance(values, Mapping):
            raise ScheduleError(f"predictor must be an object, got {show(values)}")
        check_keys(values, ("places", "weights", "bias"), "predictor")
        places, bias = values["places"], numbers(values["bias"], "predictor.bias", 1)
        if not isinstance(places, list) or any(type(place) is not int for place in places):
            raise ScheduleError(f"predictor.places must be whole numbers, got {show(places)}")
        weights = numbers(values["weights"], "predictor.weights", 2)
        return cls(tuple(places), weights.reshape(len(weights), -1), bias)


def numbers(values: object, where: str, dimensions: int) -> FloatArray:
    """A list of numbers, or of equally long lists of them, as an array; raises ScheduleError."""
    if not isinstance(values, list):
        raise ScheduleError(f"{where} is {show(values)}; it must hold numbers")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as err:
        raise ScheduleError(f"{where} is {show(values)}; it must hold numbers") from err
    if array.size and array.ndim != dimensions:
        raise ScheduleError(f"{where} must have {dimensions} dimensions, and has {array.ndim}")
    return array


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)
