"""All schedules that a server offers for its model: by name, or by budget."""

import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from vtr_vllm.errors import ScheduleError, UnknownSchedule
from vtr_vllm.schedules.cost import flops_fraction
from vtr_vllm.schedules.forms import FORMS, form_by_name, full
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.interpolation import interpolate
from vtr_vllm.schedules.keep_rates import check_budget
from vtr_vllm.schedules.p_sigmoid import p_sigmoid
from vtr_vllm.schedules.schedule import Schedule
from vtr_vllm.schedules.strict_json import JSON, show

Source = Literal["full", "searched", "interpolated", "p-sigmoid-default"]

_SAME_BUDGET = 1e-9


@dataclass(frozen=True)
class Selection:
    """The schedule chosen for a budget, and where it comes from."""

    schedule: Schedule
    source: Source


class ScheduleBook:
    """Stored schedules of one model geometry, beside the built-in forms; immutable.

    Raises GeometryMismatch for a schedule of another model, and ScheduleError for two stored
    schedules of one name or of one budget, and for a stored schedule that carries the name of
    a built-in form without being equal to it.
    """

    def __init__(self, geometry: ModelGeometry, schedules: Iterable[Schedule] = ()) -> None:
        self.geometry = geometry
        self._stored: dict[str, Schedule] = {}
        # the stored schedules that state a budget, and these budgets, both ascending
        self._ladder: list[Schedule] = []
        self._budgets: list[float] = []
        for schedule in schedules:
            self._add(schedule)

    @classmethod
    def from_folder(cls, geometry: ModelGeometry, path: str | os.PathLike[str]) -> Self:
        """Load every ``*.json`` of a folder; raises ScheduleError with the path of a bad file."""
        folder = Path(path)
        if not folder.is_dir():
            raise ScheduleError(f"schedule folder {folder} is no folder; create it or name another")
        book = cls(geometry)
        for file in sorted(folder.glob("*.json")):
            schedule = Schedule.load(file)
            try:
                book._add(schedule)
            except ScheduleError as err:
                raise type(err)(f"schedule file {file}: {err}") from err
        return book

    def by_name(self, name: str) -> Schedule:
        """A stored schedule or a built-in form such as ``fastv-0.5``.

        Raises UnknownSchedule for any other name, InvalidBudget for a form that cannot meet
        the budget in its name.
        """
        schedule = self._stored.get(name) or form_by_name(self.geometry, name)
        if schedule is None:
            forms = ", ".join(f"{form}-<budget>" for form in FORMS if form != "full")
            raise UnknownSchedule(
                f"schedule {show(name)} is unknown; there are {', '.join(self.names())}, and"
                f" {forms} with a mean keep rate in (0, 1] of at most four decimals"
            )
        return schedule

    def for_budget(self, budget: object) -> Selection:
        """The schedule to run at ``budget``, the mean keep rate; raises InvalidBudget.

        1.0 is ``full``; then a stored schedule of exactly this budget; then the interpolation
        of the stored schedules next to it, ``full`` standing above the highest; below the
        lowest the P-Sigmoid with its default parameters, which meets every budget.
        """
        value = check_budget(budget)
        if value == 1.0:
            return Selection(full(self.geometry), "full")
        stored = self._of_budget(value)
        if stored is not None:
            return Selection(stored, "searched")
        above = bisect_left(self._budgets, value)
        if above == 0:
            return Selection(p_sigmoid(self.geometry, value), "p-sigmoid-default")
        upper = self._ladder[above] if above < len(self._ladder) else full(self.geometry)
        return Selection(interpolate(self._ladder[above - 1], upper, value), "interpolated")

    def names(self) -> tuple[str, ...]:
        """``full`` and the stored names, sorted; form names beside ``full`` need a budget."""
        return tuple(sorted({"full", *self._stored}))

    def describe(self, n_vision: int = 576, n_text: int = 64) -> list[dict[str, JSON]]:
        """One plain dictionary per name, for GET /v1/schedules.

        ``flops_fraction`` is the prefill FLOPs of a prompt of ``n_vision`` vision and ``n_text``
        text tokens over those of no reduction; both counts stand beside it.
        """
        return [self._describe(self.by_name(name), n_vision, n_text) for name in self.names()]

    def _describe(self, schedule: Schedule, n_vision: int, n_text: int) -> dict[str, JSON]:
        counts = schedule.counts(n_vision)
        return {
            "name": schedule.name,
            "method": schedule.method,
            "source": "searched" if schedule.name in self._stored else "full",
            "budget": schedule.budget,
            "mean_keep": schedule.mean_keep,
            "keep": list(schedule.keep),
            "rules": [str(rule) for rule in schedule.rules],
            "per_image_floor": schedule.per_image_floor,
            "flops_fraction": flops_fraction(self.geometry, counts, n_vision, n_text),
            "n_vision": n_vision,
            "n_text": n_text,
        }

    def _add(self, schedule: Schedule) -> None:
        schedule.check_fits(self.geometry)
        if schedule.name in self._stored:
            raise ScheduleError(f"two schedules are named {schedule.name}; rename one")
        form = form_by_name(self.geometry, schedule.name)
        if form and form.wire() != schedule.wire():
            raise ScheduleError(
                f"schedule {schedule.name} has the name of a built-in form but other keep rates,"
                " rules or per-image floor; rename it"
            )
        if schedule.budget is not None:
            rival = self._of_budget(schedule.budget)
            if rival is not None:
                raise ScheduleError(
                    f"schedules {rival.name} and {schedule.name} both claim budget"
                    f" {schedule.budget}; set the budget of one to null: it stays reachable by name"
                )
            place = bisect_left(self._budgets, schedule.budget)
            self._ladder.insert(place, schedule)
            self._budgets.insert(place, schedule.budget)
        self._stored[schedule.name] = schedule

    def _of_budget(self, budget: float) -> Schedule | None:
        first = bisect_left(self._budgets, budget - _SAME_BUDGET)
        same = first < len(self._budgets) and self._budgets[first] <= budget + _SAME_BUDGET
        return self._ladder[first] if same else None
