"""What every claim stands beside, at equal mean keep: schedules and an input transform."""

from collections.abc import Iterator
from dataclasses import dataclass

from vtr_vllm.errors import InvalidBudget
from vtr_vllm.schedules import FORMS, ModelGeometry, Schedule
from vtr_vllm.search.candidates import Candidate, unreduced

SCHEDULES = ("random", "fastv", "pdrop", "vtw", "uniform")
"""Built-in forms, in the order of the tables; ``uniform`` is one question-blind cut."""

DOWNSAMPLE = "downsample"


@dataclass(frozen=True)
class Contender:
    """One method at one budget, ready to be evaluated; or why it cannot be."""

    method: str
    budget: float
    candidate: Candidate | None
    schedule: Schedule | None = None
    """None for an input transform, and where the budget cannot be met."""
    why_not: str | None = None

    @property
    def mean_keep(self) -> float | None:
        """The share of vision-token work, as the schedule or the transform promises it."""
        if self.schedule is not None:
            return self.schedule.mean_keep
        return None if self.candidate is None else self.candidate.image_scale

    @property
    def name(self) -> str:
        """The schedule's name, or method and budget."""
        return self.schedule.name if self.schedule else f"{self.method}-{self.budget!r}"


def of_schedule(method: str, schedule: Schedule, n_vision: int | None) -> Contender:
    """A schedule at the budget that it spends."""
    budget = schedule.mean_keep if schedule.budget is None else schedule.budget
    return Contender(method, budget, Candidate.of(schedule, n_vision), schedule)


def baselines(geometry: ModelGeometry, budget: float, n_vision: int | None) -> Iterator[Contender]:
    """Every baseline at ``budget``; one that cannot meet it says why.

    The down-sampled image has ``budget`` times the pixels. A model of fixed resolution scales it
    up again and pays for all its tokens; the baseline is charged with ``budget`` all the same, as
    if the tokens had been saved, and so stands better than it is.
    """
    for method in SCHEDULES:
        try:
            schedule = FORMS[method](geometry, budget)
        except InvalidBudget as err:
            yield Contender(method, budget, None, why_not=str(err))
        else:
            # vtw takes a budget of four decimals as the nearest multiple: table it as asked
            yield Contender(method, budget, Candidate.of(schedule, n_vision), schedule)
    scaled = Candidate(unreduced(geometry).keep, image_scale=budget)
    yield Contender(DOWNSAMPLE, budget, scaled)
