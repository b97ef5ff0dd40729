"""The searched artefact: a keep rate per decoder layer, bound to one model geometry."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vtr_vllm.errors import GeometryMismatch, ScheduleError, show
from vtr_vllm.ranking import Need, RankRule, check_heads
from vtr_vllm.schedules.floors import check_floor
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.keep_rates import (
    BUDGET_TOLERANCE,
    adaptive_rules,
    check_keep_and_rules,
    cut_layers,
    cuts_inside_bands,
    keep_counts,
    mean,
    of_one_image,
    see_no_question,
)
from vtr_vllm.schedules.strict_json import (
    JSON,
    check_keys,
    check_version,
    copy_object,
    load_file,
    read_object,
)
from vtr_vllm.schedules.wire import Wire, to_wire
from vtr_vllm.whole_file import whole_file

SCHEMA_VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_KEYS = (
    "schema_version",
    "name",
    "geometry",
    "keep",
    "rules",
    "method",
    "parameters",
    "budget",
    "provenance",
)
_OPTIONAL_KEYS = ("per_image_floor",)


@dataclass(frozen=True)
class Schedule:
    """A keep rate per layer and a rank rule per cut; raises ScheduleError when malformed.

    ``keep``: one rate per decoder layer, finite in [0, 1], never rising with depth. ``rules``:
    one per cut, a cut being a layer index whose rate is below the one before it (1.0 stands
    before layer 0). ``budget``, where stated, equals the mean keep rate within 1e-6: it is the
    promise under which a request chooses this schedule; None means "by name only".
    ``parameters`` and ``provenance`` are plain JSON, copied on entry. ``per_image_floor``: what
    each of several images keeps whatever the others score, see ``image_floors``.
    """

    name: str
    geometry: ModelGeometry
    keep: tuple[float, ...]
    rules: tuple[RankRule, ...]
    method: str
    parameters: Mapping[str, JSON] = field(default_factory=dict, hash=False)
    budget: float | None = None
    provenance: Mapping[str, JSON] = field(default_factory=dict, hash=False)
    per_image_floor: float = 0.0

    def __post_init__(self) -> None:
        for label, text in (("name", self.name), ("method", self.method)):
            if not isinstance(text, str) or not _NAME.fullmatch(text):
                raise ScheduleError(
                    f"schedule {label} {show(text)} is not allowed; use 1 to 96 of letters,"
                    " digits, '.', '_' and '-', starting with a letter or digit"
                )
        if not isinstance(self.geometry, ModelGeometry):
            raise ScheduleError(f"geometry must be a ModelGeometry, got {show(self.geometry)}")
        keep, rules = check_keep_and_rules(self.keep, self.rules, self.geometry.layers)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "rules", rules)
        check_heads(rules, self.geometry.heads)
        object.__setattr__(self, "parameters", copy_object(self.parameters, "parameters"))
        object.__setattr__(self, "provenance", copy_object(self.provenance, "provenance"))
        object.__setattr__(self, "per_image_floor", check_floor(self.per_image_floor))
        if self.is_adaptive:
            self._check_adaptive()
        if self.budget is not None:
            object.__setattr__(self, "budget", self._check_budget(self.budget))

    def _check_adaptive(self) -> None:
        """What it spends is known once it ran: it promises no budget, and no share of it to an image."""
        for name, value in (
            ("budget", self.budget),
            ("per_image_floor", self.per_image_floor or None),
        ):
            if value is not None:
                rules = adaptive_rules(self.rules)
                raise ScheduleError(
                    f"schedule {self.name} has {name} {show(value)} and adaptive cuts"
                    f" ({', '.join(map(str, rules))}), of which nobody knows beforehand what they keep; leave"
                    f" {name} out, or rank by {rules[0].with_fixed_count()} and its like"
                )

    def _check_budget(self, budget: object) -> float:
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
            raise ScheduleError(f"budget is {show(budget)}; it must be null or in (0, 1]")
        if abs(self.mean_keep - budget) > BUDGET_TOLERANCE:
            raise ScheduleError(
                f"budget is {budget}, but the mean keep rate is {self.mean_keep}; they may differ"
                f" by {BUDGET_TOLERANCE}: correct the budget, or set it to null"
            )
        return float(budget)

    @property
    def mean_keep(self) -> float:
        """The mean keep rate over all layers: the budget that this schedule spends."""
        return mean(self.keep)

    @property
    def is_adaptive(self) -> bool:
        """Whether its keep rates are the most that may stay, and the model says how many tokens do."""
        return bool(adaptive_rules(self.rules))

    @property
    def cuts(self) -> tuple[int, ...]:
        """The layer indices before which vision tokens are dropped, ascending."""
        return cut_layers(self.keep, 1.0)

    @property
    def is_local(self) -> bool:
        """Whether it drops tokens, and by rules that look at nothing behind an image.

        An engine can keep the KV for a later request only if its KV bands start at all cuts, too:
        ``ScheduleBook.reuses``.
        """
        return bool(self.rules) and see_no_question(self.rules)

    def counts(self, n_vision: int) -> tuple[int, ...]:
        """Kept vision tokens per layer, ``[layers]``; see ``keep_counts`` for the rounding."""
        return keep_counts(self.keep, n_vision)

    def check_fits(self, geometry: ModelGeometry) -> None:
        """Raise GeometryMismatch unless this schedule was made for ``geometry``."""
        if self.geometry != geometry:
            raise GeometryMismatch(
                f"schedule {self.name} was made for {self.geometry.fingerprint}, the model is"
                f" {geometry.fingerprint}; search a schedule for this model"
            )

    def check_bands(self, starts: Collection[int] | None) -> None:
        """Raise ScheduleError where an engine with these KV bands refuses every request with it.

        ``starts``: the first layer of each band; None: any layer may start one.
        """
        rule = None if starts is None else of_one_image(self.rules)
        if starts is None or rule is None:
            return
        if inside := cuts_inside_bands(self.cuts, starts):
            raise ScheduleError(
                f"schedule {self.name} has rule {rule}, which ranks images one by one, and its cuts"
                f" before layers {inside} are not before the first layer of a KV band"
                f" ({sorted(starts)}); move the cuts there, or name another rule"
            )

    def check_modules(self, layers: Collection[int] | None) -> None:
        """Raise ScheduleError where an engine refuses every request with it for want of trained modules.

        ``layers``: before which it has some; None: any.
        """
        if layers is None:
            return
        for cut, rule in zip(self.cuts, self.rules, strict=True):
            if Need.MODULES in rule.needs and cut not in layers:
                there = f"has some before layers {sorted(layers)} alone" if layers else "has none"
                raise ScheduleError(
                    f"schedule {self.name} has rule {rule} before layer {cut}, which trained modules decide,"
                    f" and the server {there}: start it with --atp, and the modules that the schedule"
                    " belongs to"
                )

    def wire(self) -> Wire:
        """What goes into ``SamplingParams.extra_args``."""
        return to_wire(self.keep, self.rules, self.per_image_floor)

    def to_json(self) -> str:
        """One JSON object, ending in a newline; floats round-trip exactly.

        It has every key, and ``per_image_floor`` unless that is 0.
        """
        values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "geometry": self.geometry.to_dict(),
            "keep": list(self.keep),
            "rules": [str(rule) for rule in self.rules],
            "method": self.method,
            "parameters": self.parameters,
            "budget": self.budget,
            "provenance": self.provenance,
        }
        if self.per_image_floor:
            values["per_image_floor"] = self.per_image_floor
        return json.dumps(values, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The reverse of ``to_json``; raises ScheduleError, and no other error, on bad text."""
        values = read_object(text)
        check_version(values, SCHEMA_VERSION, "write the schedule again with a matching release")
        check_keys(values, _KEYS, "schedule", _OPTIONAL_KEYS)
        del values["schema_version"]
        values["geometry"] = ModelGeometry.from_dict(values["geometry"])
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file at once or not at all; OSError passes through."""
        with whole_file(Path(path)) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read one file of at most 1 MiB; raises ScheduleError with the path and the reason."""
        return load_file(path, "schedule", cls.from_json)


def explicit(
    geometry: ModelGeometry,
    keep: Sequence[float],
    rules: Sequence[RankRule],
    name: str = "explicit",
) -> Schedule:
    """Any keep curve with its rules, no budget promised; raises ScheduleError as Schedule."""
    return Schedule(name, geometry, tuple(keep), tuple(rules), method="explicit")
