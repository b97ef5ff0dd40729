"""What every claim stands beside, at equal mean keep: schedules and an input transform."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vtr_vllm.errors import InvalidBudget
from vtr_vllm.ranking import Need
from vtr_vllm.schedules import FORMS, ModelGeometry, Schedule, uniform
from vtr_vllm.schedules.forms.registry import Form
from vtr_vllm.search.candidates import Candidate

SCHEDULES = (
    *("random", "fastv", "priortr", "pdrop", "feather", "sparsevlm", "illava", "vtw"),
    *("uniform", "vtc-cls", "fopru-row", "prumerge", "prumerge-plus", "visionzip"),
    *("divprune", "gots", "matryoshka"),
)
"""Built-in forms, in the order of the tables; those from ``uniform`` on are one question-blind cut.
``fopru`` is ``vtc-cls`` here."""

DOWNSAMPLE = "downsample"


@dataclass(frozen=True)
class Contender:
    """One method at one budget, ready to be evaluated; or why it cannot be."""

    method: str
    budget: float
    candidate: Candidate | None
    schedule: Schedule | None = None
    """None where the budget cannot be met."""
    why_not: str | None = None

    @property
    def name(self) -> str:
        """The schedule's name; of an input transform, method and budget."""
        if self.schedule is None or self.method == DOWNSAMPLE:
            return f"{self.method}-{self.budget!r}"
        return self.schedule.name


def of_schedule(method: str, schedule: Schedule, n_vision: int | None) -> Contender:
    """A schedule at the budget that it spends."""
    budget = schedule.mean_keep if schedule.budget is None else schedule.budget
    return Contender(method, budget, Candidate.of(schedule, n_vision), schedule)


def baseline(
    method: str, form: Form, geometry: ModelGeometry, budget: float, n_vision: int | None
) -> Contender:
    """What ``form`` makes of ``budget``; or why it cannot be met."""
    try:
        schedule = form(geometry, budget)
    except InvalidBudget as err:
        return Contender(method, budget, None, why_not=str(err))
    # vtw takes a budget of four decimals as the nearest multiple: table it as asked
    return Contender(method, budget, Candidate.of(schedule, n_vision), schedule)


def baselines(
    geometry: ModelGeometry, budget: float, n_vision: int | None, has_cls: bool
) -> Iterator[Contender]:
    """Every baseline at ``budget``; one that cannot meet it, or needs what the model lacks, says why.

    The down-sampled image has ``budget`` of its area, and as many of the tokens: those that show
    nothing but the canvas are dropped before layer 0.
    """
    for method in SCHEDULES:
        found = baseline(method, FORMS[method], geometry, budget, n_vision)
        rules = found.schedule.rules if found.schedule is not None else ()
        if not has_cls and any(Need.TOWER in rule.needs for rule in rules):
            found = Contender(method, budget, None, why_not="the vision tower has no CLS token")
        yield found
    shrunk = uniform(geometry, budget)
    candidate = replace(Candidate.of(shrunk, n_vision), image_scale=budget)
    yield Contender(DOWNSAMPLE, budget, candidate, shrunk)
