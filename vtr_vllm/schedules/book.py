"""All schedules that a server offers for its model: by name, or by budget."""

import os
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from vtr_vllm.errors import ScheduleError, UnknownSchedule, show
from vtr_vllm.schedules.cost import flops_fraction
from vtr_vllm.schedules.evidence import leads
from vtr_vllm.schedules.forms import FORMS, form_by_name
from vtr_vllm.schedules.forms.divprune import divprune
from vtr_vllm.schedules.forms.full import full
from vtr_vllm.schedules.forms.p_sigmoid import p_sigmoid
from vtr_vllm.schedules.geometry import ModelGeometry
from vtr_vllm.schedules.interpolation import interpolate
from vtr_vllm.schedules.keep_rates import check_budget, cuts_inside_bands, see_no_question
from vtr_vllm.schedules.schedule import Schedule
from vtr_vllm.schedules.strict_json import JSON

Source = Literal["full", "searched", "interpolated", "p-sigmoid-default", "local-default"]

_SAME_BUDGET = 1e-9


@dataclass(frozen=True)
class Selection:
    """The schedule chosen for a budget, and where it comes from."""

    schedule: Schedule
    source: Source


@dataclass
class _Ladder:
    """Stored schedules that state a budget, and these budgets, both ascending."""

    schedules: list[Schedule] = field(default_factory=list)
    budgets: list[float] = field(default_factory=list)

    def of_budget(self, budget: float) -> Schedule | None:
        first = bisect_left(self.budgets, budget - _SAME_BUDGET)
        same = first < len(self.budgets) and self.budgets[first] <= budget + _SAME_BUDGET
        return self.schedules[first] if same else None

    def remove(self, budget: float) -> None:
        """Forget the schedule of a budget, where there is one."""
        if (stored := self.of_budget(budget)) is not None:
            place = self.schedules.index(stored)
            del self.schedules[place], self.budgets[place]

    def add(self, schedule: Schedule, budget: float) -> None:
        rival = self.of_budget(budget)
        if rival is not None:
            raise ScheduleError(
                f"schedules {rival.name} and {schedule.name} both claim budget {budget}; set the"
                " budget of one to null: it stays reachable by name"
            )
        place = bisect_left(self.budgets, budget)
        self.schedules.insert(place, schedule)
        self.budgets.insert(place, budget)


class ScheduleBook:
    """Stored schedules of one model geometry, beside the built-in forms; immutable.

    ``band_starts``: the first layer of each of the engine's KV bands; None: any layer may start one, and
    of two local schedules of one budget the first is taken, since both stand where bands keep one from reuse.
    ``modules``: the layers before which the engine has trained modules; None: any may have one.
    Raises GeometryMismatch for a schedule of another model, and ScheduleError for one that cannot run
    in these bands or with these modules, for two stored schedules of one name, or of one budget where both are reused or neither
    is, and for a stored schedule that carries the name of a built-in form without being equal to it.
    """

    def __init__(
        self,
        geometry: ModelGeometry,
        schedules: Iterable[Schedule] = (),
        band_starts: Collection[int] | None = None,
        modules: Collection[int] | None = None,
    ) -> None:
        self.geometry = geometry
        self.modules = None if modules is None else tuple(sorted(modules))
        self.band_starts = None if band_starts is None else tuple(sorted(band_starts))
        self._stored: dict[str, Schedule] = {}
        self._ladders: dict[bool | None, _Ladder] = {
            reuse: _Ladder() for reuse in (False, True, None)
        }
        for schedule in schedules:
            self._add(schedule)

    @classmethod
    def from_folder(
        cls,
        geometry: ModelGeometry,
        path: str | os.PathLike[str],
        band_starts: Collection[int] | None = None,
        modules: Collection[int] | None = None,
    ) -> Self:
        """Load every ``*.json`` of a folder; raises ScheduleError with the path of a bad file."""
        folder = Path(path)
        if not folder.is_dir():
            raise ScheduleError(f"schedule folder {folder} is no folder; create it or name another")
        book = cls(geometry, band_starts=band_starts, modules=modules)
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

    def for_budget(self, budget: object, reuse: bool | None = None) -> Selection:
        """The schedule to run at ``budget``, the mean keep rate; raises InvalidBudget.

        With ``reuse`` of those whose KV a later request can use; False: of those that look at the
        question; None: of both, and where both have this budget of the latter, unless the search
        found the other clearly better. 1.0 is ``full``; then a stored schedule of exactly this
        budget; then the interpolation of the stored schedules next to it, ``full`` standing above
        the highest; below the lowest a form that meets every budget: one cut before layer 0, or where
        the question must be looked at the P-Sigmoid with its default parameters.
        """
        value = check_budget(budget)
        if value == 1.0:
            return Selection(full(self.geometry), "full")
        ladder = self._ladders[reuse]
        stored = ladder.of_budget(value)
        if stored is not None:
            return Selection(stored, "searched")
        above = bisect_left(ladder.budgets, value)
        if above == 0 and reuse is False:
            return Selection(p_sigmoid(self.geometry, value), "p-sigmoid-default")
        if above == 0:
            return Selection(divprune(self.geometry, value), "local-default")
        upper = ladder.schedules[above] if above < len(ladder.budgets) else full(self.geometry)
        lower = ladder.schedules[above - 1]
        return Selection(interpolate(lower, upper, value), "interpolated")

    def reuses(self, schedule: Schedule) -> bool:
        """Whether the KV of a request with this schedule can serve later requests."""
        return schedule.is_local and self.why_not_reused(schedule) is None

    def why_not_reused(self, schedule: Schedule) -> str | None:
        """What keeps later requests from its KV; None where nothing does, and at full budget."""
        if not schedule.rules:
            return None
        if not schedule.is_local:
            guided = sorted({str(rule) for rule in schedule.rules if not see_no_question([rule])})
            return f"{', '.join(guided)} ranks by what stands behind the image"
        if self.band_starts is None:
            return None
        inside = cuts_inside_bands(schedule.cuts, self.band_starts)
        return (
            f"it cuts before layers {inside}, and the engine's KV bands start at"
            f" {list(self.band_starts)}"
            if inside
            else None
        )

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
            "adaptive_cuts": schedule.is_adaptive,
            "per_image_floor": schedule.per_image_floor,
            "reuse": self.reuses(schedule),
            "why_not_reused": self.why_not_reused(schedule),
            "flops_fraction": flops_fraction(self.geometry, counts, n_vision, n_text),
            "n_vision": n_vision,
            "n_text": n_text,
        }

    def _add(self, schedule: Schedule) -> None:
        schedule.check_fits(self.geometry)
        schedule.check_bands(self.band_starts)
        schedule.check_modules(self.modules)
        if schedule.name in self._stored:
            raise ScheduleError(f"two schedules are named {schedule.name}; rename one")
        form = form_by_name(self.geometry, schedule.name)
        if form and form.wire() != schedule.wire():
            raise ScheduleError(
                f"schedule {schedule.name} has the name of a built-in form but other keep rates,"
                " rules or per-image floor; rename it"
            )
        if schedule.budget is not None:
            self._offer(schedule, schedule.budget)
        self._stored[schedule.name] = schedule

    def _offer(self, schedule: Schedule, budget: float) -> None:
        """Put it on the ladder of its kind, and on that of both where it is the better one."""
        reuse = self.reuses(schedule)
        own, both = self._ladders[reuse], self._ladders[None]
        # without bands nobody can tell which of two local ones is reused: the first stands for both
        if self.band_starts is not None or not schedule.is_local or own.of_budget(budget) is None:
            own.add(schedule, budget)
        rival = both.of_budget(budget)
        if rival is None or (leads(schedule, rival) if reuse else not leads(rival, schedule)):
            both.remove(budget)
            both.add(schedule, budget)
