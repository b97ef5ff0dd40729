"""A whole search, from the unreduced model to schedule files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vtr_vllm.schedules import FIRST_ATTENTION_CUT, ModelGeometry, Schedule, ScheduleBook
from vtr_vllm.search import g_search
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.descent import Descent, descend
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.families import (
    LOSSLESS,
    NAMES,
    PAPER,
    Family,
    Layout,
    Names,
    blind_rules,
    families,
    family_of,
    local_rules,
    local_starts,
    paper_layout,
    places,
)
from vtr_vllm.search.lossless import search_lossless
from vtr_vllm.search.rule_search import ATTENTION_RULES, RuleTable, guided_starts, search_rules
from vtr_vllm.search.sigmoid_search import (
    CONFIRMED,
    Curves,
    Trial,
    confirmed,
    fit_logistic,
    search_sigmoid,
)
from vtr_vllm.search.statistics import bootstrap_interval
from vtr_vllm.search.study import Study
from vtr_vllm.search_options import SearchOptions

CURVE_ITEMS = 300
"""Items that curves are compared on, where nothing else is asked for."""

RULE_ITEMS = (100, 300)
"""Items that rules are first told apart on, and the best of them again."""

MERGES = ("nearest", "scored", "recycled")
"""Merges that a descent tries at each cut: those that suit any kind of cut."""

_NOT_STOPPED = 0.4
"""Share of G-Search's requests that early stopping leaves, as seen on the demo model."""


def _nobody(_: "Result") -> None:
    """Who wants to hear of nothing."""


@dataclass
class Result:
    """What was found."""

    schedules: dict[str, list[Schedule]] = field(default_factory=dict)
    """By method. A P-Sigmoid's and a descent's budgets are the settings'."""
    steps: dict[str, list[g_search.GreedyStage]] = field(default_factory=dict)
    """Of the G-Searches, by method."""
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    """Of the Bayesian optimisations, by method."""
    rules: dict[Family, RuleTable] = field(default_factory=dict)
    """How well rules rank, by family."""
    more: Callable[["Result"], None] = field(default=_nobody, compare=False, repr=False)
    """Told after each schedule that was found."""

    def found(self, method: str, schedule: Schedule) -> None:
        """One more schedule, whose steps and trials are there already."""
        self.schedules.setdefault(method, []).append(schedule)
        self.more(self)


@dataclass(frozen=True)
class Scored:
    """A schedule with what it scores on items that the search did not use."""

    schedule: Schedule
    method: str
    evaluation: Evaluation

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Accuracy with its 95% bootstrap interval, and the value searched for."""
        return scores(self.evaluation)


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy with its 95% bootstrap interval, and the value searched for."""
    low, high = bootstrap_interval([o.score for o in evaluation.outcomes], evaluation.groups)
    return {
        "accuracy": evaluation.accuracy,
        "low": low,
        "high": high,
        "value": evaluation.value,
        "n": len(evaluation.outcomes),
    }


def run(study: Study, settings: SearchOptions, more: Callable[[Result], None] = _nobody) -> Result:
    """Search; ``more`` is told after each schedule that was found.

    Raises EvaluationFailed where the engine fails, ConfigurationError for settings, and
    TimeLimitReached as the study.
    """
    if settings.family != "guided":
        local_starts(study.band_starts)  # refused before any work
    result = Result(more=more)
    study.progress.begin("unreduced")
    study.unreduced()
    for family in families(settings.family):
        if family == "guided" or settings.kind != "all":
            _paper(study, settings, result, family)
        if settings.kind == "all":
            _beyond(study, settings, result, family)
    return result


def _paper(study: Study, settings: SearchOptions, result: Result, family: Family) -> None:
    """G-Search with one rule at each layer or band, and the P-Sigmoid around its curve."""
    names = PAPER if family == "guided" else NAMES[family]
    layout = paper_layout(family, study)
    _g_search(study, settings, result, names.g_search, layout)
    if settings.kind != "g-search":
        _p_sigmoid(study, settings, result, names, layout)


def _beyond(study: Study, settings: SearchOptions, result: Result, family: Family) -> None:
    """Searched rules, a question-blind first cut, and descent on the counts."""
    names = NAMES[family]
    study.progress.begin(names.rules)
    table = search_rules(study, names.rules, RULE_ITEMS, places(family, study))
    result.rules[family] = table
    layout = Layout((0, *table.cut_layers), table.rules)
    _g_search(study, settings, result, names.g_search, layout)
    _p_sigmoid(study, settings, result, names, layout)
    study.progress.begin(names.descent)
    how = Descent(
        table.cut_layers,
        table.rules,
        {layer: table.rivals(layer) for layer in layout.starts},
        final=_compared(settings),
        merges=MERGES,
        enough=settings.tolerance,
    )
    for schedule in result.schedules[names.p_sigmoid]:
        found = descend(study, names.descent, how, schedule)
        result.found(names.descent, _named(found, names.descent))
    study.progress.begin(names.lossless)
    curve, (greedy,) = result.schedules[names.descent], result.schedules[names.g_search]
    found = search_lossless(study, names.lossless, curve, greedy, settings.tolerance)
    result.found(names.lossless, replace(found, name=LOSSLESS[family], method=names.lossless))


def _g_search(
    study: Study, settings: SearchOptions, result: Result, name: str, layout: Layout
) -> None:
    study.progress.begin(name)
    how = g_search.GSearch(
        layout.starts,
        layout.rules,
        settings.tolerance,
        inner=settings.inner,
        trials=settings.trials,
        seed=settings.seed,
        weight=settings.weight,
    )
    schedule, result.steps[name] = g_search.search(study, how, name)
    result.found(name, schedule)


def _p_sigmoid(
    study: Study, settings: SearchOptions, result: Result, names: Names, layout: Layout
) -> None:
    name = names.p_sigmoid
    study.progress.begin(name)
    curves = Curves(layout.later, layout.rules, blind=layout.blind)
    fit = fit_logistic(result.schedules[names.g_search][0].keep, FIRST_ATTENTION_CUT)
    result.trials[name] = []
    starts = [fit]
    for budget in sorted(settings.budgets, reverse=True):
        trials = search_sigmoid(
            study, name, curves, budget, starts, settings.trials, _compared(settings), settings.seed
        )
        best = confirmed(study, name, trials)
        result.trials[name] += [replace(each, taken=each.order == best.order) for each in trials]
        result.found(name, _named(best.schedule, name))
        # what was best at one budget is the place to look first at the next
        starts = [fit, tuple(best.parameters.values())]


def _compared(settings: SearchOptions) -> int:
    """Items that curves are compared on; everything else takes all of the study."""
    return CURVE_ITEMS if settings.items is None else settings.items


def _named(schedule: Schedule, method: str) -> Schedule:
    """A local schedule is named by its method: else its name would be a guided one's."""
    if family_of(method) == "guided":
        return schedule
    return replace(schedule, name=f"{method}-{schedule.budget!r}", method=method)


class HeldOutScores:
    """What was found, scored on items that the search did not use, and the best of it.

    Each schedule is scored once: it may be asked again after each that is found.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._scored: dict[str, list[Scored]] = {}

    @cached_property
    def unreduced(self) -> Evaluation:
        """What the schedules stand beside."""
        with self.study.progress.aside("selection"):
            return self.study.unreduced()

    def scored(self, result: Result) -> list[Scored]:
        """Every schedule that was found, in the order of its method."""
        for method, schedules in result.schedules.items():
            known = self._scored.setdefault(method, [])
            known += self._score(method, schedules[len(known) :])
        return [scored for method in result.schedules for scored in self._scored[method]]

    def best(self, result: Result) -> list[Scored]:
        """The best schedule of each family and budget, and each one without a budget.

        Of equals the earlier method is taken, which is the simpler one.
        """
        chosen = []
        rivals: dict[tuple[Family, float], list[Scored]] = {}
        for scored in self.scored(result):
            if scored.schedule.budget is None:
                chosen.append(scored)
            else:
                rung = self.family(scored.schedule), scored.schedule.budget
                rivals.setdefault(rung, []).append(scored)
        best = [max(each, key=lambda scored: scored.evaluation.value) for each in rivals.values()]
        return chosen + best

    def family(self, schedule: Schedule) -> Family:
        """The family that a schedule stands for, as it does in a server's book: what a guided search
        found may have turned out local."""
        return "local" if self._book.reuses(schedule) else "guided"

    @cached_property
    def _book(self) -> ScheduleBook:
        return ScheduleBook(self.study.geometry, band_starts=self.study.band_starts)

    def _score(self, method: str, schedules: Sequence[Schedule]) -> list[Scored]:
        if not schedules:
            return []
        candidates = [Candidate.of(schedule, self.study.same_n_vision) for schedule in schedules]
        with self.study.progress.aside("selection"):
            found = self.study.evaluate("selection", candidates)
        return [
            Scored(schedule, method, evaluation)
            for schedule, evaluation in zip(schedules, found, strict=True)
        ]


def plan(
    settings: SearchOptions,
    geometry: ModelGeometry,
    n_vision: int,
    items: int,
    rest: int,
    band_starts: Sequence[int] = (),
) -> dict[str, int]:
    """Requests per stage, about: what is stopped early or equals an earlier one is guessed.

    ``band_starts`` are asked for by the local family alone. Raises ConfigurationError where there is
    no local schedule to search.
    """
    found = {"unreduced": items}
    scored = 0  # schedules that the selection scores, and the unreduced model
    for family in families(settings.family):
        stages, schedules = _plan(settings, family, geometry, n_vision, items, band_starts)
        found |= stages
        scored += schedules + 1
    return {**found, "selection": scored * rest}


def _plan(
    settings: SearchOptions,
    family: Family,
    geometry: ModelGeometry,
    n_vision: int,
    items: int,
    band_starts: Sequence[int],
) -> tuple[dict[str, int], int]:
    """Requests per stage of one family, and the schedules that it finds."""
    guided = family == "guided"
    stages = len(guided_starts(geometry.layers)) if guided else len(local_starts(band_starts)) - 1
    tries = settings.trials if settings.inner == "bayes" else n_vision.bit_length() + 1
    greedy = round(tries * items * _NOT_STOPPED)
    budgets, compared = len(settings.budgets), min(_compared(settings), items)
    runs = budgets * (settings.trials * compared + CONFIRMED * (items - compared))
    found: dict[str, int] = {}
    schedules = 0
    names = NAMES[family]
    if guided or settings.kind != "all":
        paper = PAPER if guided else names
        found[paper.g_search] = (stages if guided else stages + 1) * greedy
        if settings.kind == "g-search":
            return found, 1
        found[paper.p_sigmoid] = runs
        schedules += budgets + 1
    if settings.kind == "all":
        rough, fine = (min(each, items) for each in RULE_ITEMS)
        both = {*ATTENTION_RULES, *blind_rules(has_cls=True)}
        rules = len(both if guided else local_rules(FIRST_ATTENTION_CUT, has_cls=True))
        heads = geometry.heads + 1 if geometry.heads > 1 else 0
        found[names.rules] = stages * ((rules * 2 + heads) * rough + 6 * fine)
        found[names.g_search] = (stages + 1) * greedy
        found[names.p_sigmoid] = runs
        # two rounds of moves in all, about half of all moves between two stages being possible; and merges
        moves = stages * (stages + 1) // 2 + stages * len(MERGES) // 2
        found[names.descent] = budgets * 2 * (moves * min(100, items) + 8 * compared)
        found[names.lossless] = (budgets + 5) * items
        schedules += 2 * budgets + 2
    return found, schedules
