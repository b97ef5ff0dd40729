"""What a family is chosen from at first: plain schedules, and those that were searched before."""

from collections.abc import Iterable, Sequence

from vtr_vllm.errors import InvalidBudget
from vtr_vllm.schedules import FIRST_ATTENTION_CUT, Schedule, of_one_image, p_sigmoid
from vtr_vllm.search.adaptive.moves import with_counts
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.study import Study

_FIRST = (1.0, 0.5, 0.25, 0.125)
"""Shares kept until the second cut."""
_DEPTHS = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 5 / 6)
"""Where the second cut lies."""
_THEN = (0.0, 1 / 16)
"""Shares kept behind it."""


def pool(study: Study, searched: Iterable[Schedule], budgets: Sequence[float]) -> list[Candidate]:
    """Candidates, each once: a share chosen without the question, then next to none; curves; ``searched``.

    But for those with a rule of one image: what is next to them would cut where such a rule cannot.
    """
    layers, n = study.geometry.layers, study.n_vision
    depths = sorted({max(FIRST_ATTENTION_CUT, round(depth * layers)) for depth in _DEPTHS})
    plain = [
        with_counts([round(first * n)] * depth + [round(then * n)] * (layers - depth), {}, n)
        for first in _FIRST
        for depth in depths
        for then in _THEN
    ]
    movable = [schedule for schedule in searched if not of_one_image(schedule.rules)]
    found = [Candidate.of(schedule, n) for schedule in [*_curves(study, budgets), *movable]]
    return [each for each in dict.fromkeys([*plain, *found]) if each.reduces]


def _curves(study: Study, budgets: Sequence[float]) -> list[Schedule]:
    found = []
    for budget in budgets:
        try:
            found.append(p_sigmoid(study.geometry, budget))
        except InvalidBudget:
            continue
    return found
