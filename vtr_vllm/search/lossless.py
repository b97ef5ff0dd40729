"""The least budget that loses no quality.

G-Search spends its tolerance greedily, layer by layer. Schedules searched per budget share it
between the layers as is best; here we look how far down that curve the tolerance reaches, and take
what keeps less of the two.
"""

from collections.abc import Sequence
from dataclasses import replace

from vtr_vllm.schedules import Schedule, interpolate
from vtr_vllm.schedules.forms.full import full
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.study import Study

_HALVINGS = 5


def search_lossless(
    study: Study, stage: str, schedules: Sequence[Schedule], greedy: Schedule, tolerance: float
) -> Schedule:
    """The schedule of least budget whose value is within ``tolerance`` of the unreduced model's.

    ``schedules`` have budgets, one each; between two of them it is their interpolation that is
    tried, as a server would serve it. Bisection, so the value is taken to rise with the budget.
    Where it does not, ``greedy``, what G-Search found, may keep less.
    """
    floor = study.unreduced().value - tolerance
    ordered = sorted(schedules, key=lambda s: -s.mean_keep)
    passing = full(study.geometry)
    for schedule in ordered:
        if not _passes(study, stage, schedule, floor):
            passing = _bisect(study, stage, schedule, passing, floor)
            break
        passing = schedule
    if greedy.mean_keep < passing.mean_keep and _passes(study, stage, greedy, floor):
        passing = greedy
    study.progress.step(f"a mean keep of {passing.mean_keep:.3f} loses no quality")
    return replace(
        passing,
        name="lossless",
        method="lossless",
        parameters={"tolerance": tolerance, "curve": passing.name, **passing.parameters},
        budget=None,
    )


def _bisect(
    study: Study, stage: str, failing: Schedule, passing: Schedule, floor: float
) -> Schedule:
    lower, upper = failing, passing
    low, high = failing.mean_keep, passing.mean_keep
    for _ in range(_HALVINGS):
        middle = interpolate(lower, upper, (low + high) / 2)
        if _passes(study, stage, middle, floor):
            passing, high = middle, middle.mean_keep
        else:
            low = middle.mean_keep
    return passing


def _passes(study: Study, stage: str, schedule: Schedule, floor: float) -> bool:
    candidate = Candidate.of(schedule, study.same_n_vision)
    (found,) = study.evaluate(stage, [candidate], floor=floor)
    return found.complete and found.value >= floor
