"""What a family is chosen from at first: plain schedules, and those that were made before."""

from collections.abc import Iterable, Sequence

from vtr_vllm.errors import InvalidBudget
from vtr_vllm.ranking import Need
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


def pool(study: Study, made: Iterable[Schedule], budgets: Sequence[float]) -> list[Candidate]:
    """Candidates, each once: a share chosen without the question, then next to none; curves; ``made``."""
    curves = [Candidate.of(schedule, study.n_vision) for schedule in _curves(study, budgets)]
    return _each_once([*_plain(study), *curves, *movable(study, made)])


def movable(study: Study, made: Iterable[Schedule]) -> list[Candidate]:
    """``made`` as candidates, each once, but for those with a rule of one image: what is next to them
    would cut where such a rule cannot; those of trained modules, which lie before layers of their own; and
    those with adaptive cuts: nobody knows what they cost."""
    left = [
        schedule
        for schedule in made
        if not of_one_image(schedule.rules) and not schedule.is_adaptive
        if not any(Need.MODULES in rule.needs for rule in schedule.rules)
    ]
    return _each_once([Candidate.of(schedule, study.n_vision) for schedule in left])


def _each_once(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [each for each in dict.fromkeys(candidates) if each.reduces]


def _plain(study: Study) -> list[Candidate]:
    layers, n = study.geometry.layers, study.n_vision
    depths = sorted({max(FIRST_ATTENTION_CUT, round(depth * layers)) for depth in _DEPTHS})
    return [
        with_counts([round(first * n)] * depth + [round(then * n)] * (layers - depth), {}, n)
        for first in _FIRST
        for depth in depths
        for then in _THEN
    ]


def _curves(study: Study, budgets: Sequence[float]) -> list[Schedule]:
    found = []
    for budget in budgets:
        try:
            found.append(p_sigmoid(study.geometry, budget))
        except InvalidBudget:
            continue
    return found
