"""A family: schedules of one model, and what predicts which of them a prompt needs."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from vtr_vllm.adaptive.features import Prompt, features
from vtr_vllm.adaptive.predictor import FloatArray, Predictor, numbers
from vtr_vllm.adaptive.price import Price, Prices, pick
from vtr_vllm.errors import GeometryMismatch, InvalidBudget, ScheduleError, show
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule
from vtr_vllm.schedules.strict_json import (
    JSON,
    check_keys,
    check_version,
    copy_object,
    load_file,
    read_object,
)
from vtr_vllm.whole_file import whole_file

SCHEMA_VERSION = 1
FILE = Path("adaptive", "family.json")
"""Where the family of a schedule folder lies in it."""
METHOD = "family"
"""Method of its members."""
MOST_PROMPTS = 4000
"""Of calibration in a file: more say nothing more about a mean."""

_KEYS = ("schema_version", "name", "geometry", "members", "predictor", "calibration", "provenance")
_EPS = 1e-9


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was predicted of prompts that the predictor had not seen: budgets get their price by it."""

    predictions: FloatArray
    """[n, members]"""
    draws: FloatArray
    """[n]"""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "predictions": np.round(self.predictions, 4).tolist(),
            "draws": np.round(self.draws, 4).tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of ``to_dict``; raises ScheduleError."""
        if not isinstance(values, Mapping):
            raise ScheduleError(f"calibration must be an object, got {show(values)}")
        check_keys(values, ("predictions", "draws"), "calibration")
        predictions = numbers(values["predictions"], "calibration.predictions", 2)
        return cls(predictions, numbers(values["draws"], "calibration.draws", 1))


@dataclass(frozen=True)
class Chosen:
    """The schedule of one prompt."""

    schedule: Schedule
    probability: float
    """Of a right answer, as predicted."""
    promised: float
    """The mean keep rate over calibration at the price that decided."""
    expected: float
    """The mean probability over calibration at that price: prompts that are like it reach it too."""


@dataclass(frozen=True, eq=False)
class ScheduleFamily:
    """K schedules and a predictor; raises ScheduleError where they do not fit together."""

    name: str
    members: tuple[Schedule, ...]
    """Ascending in mean keep."""
    predictor: Predictor
    calibration: Calibration
    provenance: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        costs = [member.mean_keep for member in self.members]
        names = {member.name for member in self.members}
        if not self.members or costs != sorted(costs) or len(names) < len(costs):
            raise ScheduleError(
                f"the members of family {self.name} keep {show(costs)} under the names"
                f" {show(sorted(names))}; they must rise in what they keep, each with its own name"
            )
        for member in self.members:
            member.check_fits(self.geometry)
        shape, known = self.calibration.predictions.shape, len(self.calibration.draws)
        if len(self.predictor.bias) != len(costs) or shape != (known, len(costs)) or not known:
            raise ScheduleError(
                f"family {self.name} has {len(costs)} members, a predictor for"
                f" {len(self.predictor.bias)}, and calibration of shape {list(shape)} with {known}"
                " draws; search it again"
            )

    @property
    def geometry(self) -> ModelGeometry:
        """Of the model that it is for."""
        return self.members[0].geometry

    @cached_property
    def costs(self) -> FloatArray:
        """[members] mean keep rates."""
        return np.array([member.mean_keep for member in self.members])

    @property
    def least(self) -> float:
        """The lowest budget that can be met."""
        return float(self.costs[0])

    def check_fits(self, geometry: ModelGeometry) -> None:
        """Raise GeometryMismatch unless it was made for ``geometry``."""
        if self.geometry != geometry:
            raise GeometryMismatch(
                f"family {self.name} was made for {self.geometry.fingerprint}, the model is"
                f" {geometry.fingerprint}; search one for this model"
            )

    def choose(
        self,
        prompt: Prompt,
        budget: float,
        minimum: float = 0.0,
        maximum: float = 1.0,
        confidence: float = 0.0,
    ) -> Chosen:
        """The member for one prompt, such that ``budget`` is the mean over prompts as in calibration.

        Only members that keep ``minimum`` to ``maximum`` on the mean are asked, and none whose
        probability is below ``confidence`` where another's is not. Raises InvalidBudget where that
        leaves none, or where each keeps more than ``budget``.
        """
        allowed, price, promised, expected = self._terms(budget, minimum, maximum, confidence)
        found = self.predictor.predict(features(prompt))
        probabilities = [found[index] for index in allowed]
        costs = [float(self.costs[index]) for index in allowed]
        index = allowed[pick(probabilities, costs, price.of(prompt.draw), confidence)]
        return Chosen(self.members[index], found[index], promised, expected)

    @cached_property
    def _terms(self) -> Any:
        """``_find_terms``, kept: clients ask for the same budgets again and again."""
        return lru_cache(maxsize=256)(self._find_terms)

    def _find_terms(
        self, budget: float, minimum: float, maximum: float, confidence: float
    ) -> tuple[tuple[int, ...], Price, float, float]:
        """(members, price, mean cost, mean probability) of a budget."""
        allowed = tuple(
            index
            for index, cost in enumerate(self.costs)
            if minimum - _EPS <= cost <= maximum + _EPS
        )
        if not allowed or self.costs[allowed[0]] > budget + _EPS:
            kept = ", ".join(f"{cost:g}" for cost in self.costs)
            raise InvalidBudget(
                f"budget {budget:g} with single requests between {minimum:g} and {maximum:g} cannot"
                f" be met by family {self.name}, whose schedules keep {kept}; ask for"
                f" {self.least:g} or more, for other bounds, or without adapt"
            )
        prices: Prices = self._prices(allowed, confidence)
        price = prices.of(budget)
        return allowed, price, *prices.reached(price)

    @cached_property
    def _prices(self) -> Any:
        """``_find_prices``, kept: a server has few bounds."""
        return lru_cache(maxsize=64)(self._find_prices)

    def _find_prices(self, members: tuple[int, ...], confidence: float) -> Prices:
        known = self.calibration
        chosen = list(members)
        return Prices(known.predictions[:, chosen], self.costs[chosen], known.draws, confidence)

    def describe(self) -> dict[str, JSON]:
        """For GET /v1/schedules."""
        members: list[JSON] = [
            {**_described(member), "mean_keep": member.mean_keep} for member in self.members
        ]
        return {"name": self.name, "least_budget": self.least, "members": members}

    def to_json(self) -> str:
        """One JSON object, ending in a newline."""
        values = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "geometry": self.geometry.to_dict(),
            "members": [_described(member) for member in self.members],
            "predictor": self.predictor.to_dict(),
            "calibration": self.calibration.to_dict(),
            "provenance": dict(self.provenance),
        }
        return json.dumps(values, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The reverse of ``to_json``; raises ScheduleError, and no other error, on bad text."""
        values = read_object(text)
        check_version(values, SCHEMA_VERSION, "search the family again with a matching release")
        check_keys(values, _KEYS, "family")
        geometry = ModelGeometry.from_dict(values["geometry"])
        if not isinstance(values["members"], list):
            raise ScheduleError(f"members must be a list, got {show(values['members'])}")
        return cls(
            _name(values["name"]),
            tuple(_member(member, geometry) for member in values["members"]),
            Predictor.from_dict(values["predictor"]),
            Calibration.from_dict(values["calibration"]),
            copy_object(values["provenance"], "provenance"),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file at once or not at all; OSError passes through."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read one file of at most 1 MiB; raises ScheduleError with the path and the reason."""
        return load_file(path, "family", cls.from_json)


def member(
    name: str, geometry: ModelGeometry, keep: tuple[float, ...], rules: tuple[RankRule, ...]
) -> Schedule:
    """A schedule of a family: by that family only, so without a budget of its own."""
    return Schedule(name, geometry, keep, rules, method=METHOD)


def _described(schedule: Schedule) -> dict[str, JSON]:
    """What ``_member`` reads."""
    rules: list[JSON] = [str(rule) for rule in schedule.rules]
    return {"name": schedule.name, "keep": list(schedule.keep), "rules": rules}


def _member(values: object, geometry: ModelGeometry) -> Schedule:
    if not isinstance(values, Mapping):
        raise ScheduleError(f"a member is {show(values)}; it must be an object")
    check_keys(values, ("name", "keep", "rules"), "member")
    return member(values["name"], geometry, values["keep"], values["rules"])


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 96:
        raise ScheduleError(f"name is {show(value)}; it must be 1 to 96 characters")
    return value
