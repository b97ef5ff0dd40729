"""A whole search, from the unreduced model to schedule files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vtr_vllm.schedules import FIRST_ATTENTION_CUT, RankRule, Schedule
from vtr_vllm.search import g_search
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.descent import Descent, descend
from vtr_vllm.search.lossless import search_lossless
from vtr_vllm.search.rule_search import ATTENTION_RULES, RuleTable, search_rules
from vtr_vllm.search.sigmoid_search import (
    Family,
    Point,
    Trial,
    best_trial,
    fit_logistic,
    search_sigmoid,
)
from vtr_vllm.search.statistics import bootstrap_interval
from vtr_vllm.search.study import Evaluation, Study
from vtr_vllm.search_options import Inner, Kind

CURVE_ITEMS = 300
"""Items that curves are compared on, where nothing else is asked for."""

_NOT_STOPPED = 0.4
"""Share of G-Search's requests that early stopping leaves, as seen on the demo model."""


def _nobody(_: "Result") -> None:
    """Who wants to hear of nothing."""


@dataclass(frozen=True)
class SearchSettings:
    """What to search and how hard."""

    kind: Kind
    budgets: Sequence[float] = (0.75, 0.5, 0.375, 0.25, 0.1875)
    tolerance: float = 0.005
    """Of G-Search, in units of value: points of accuracy, or nats of divergence."""
    inner: Inner = "bisection"
    weight: float = 0.005
    trials: int = 32
    """Evaluations of each Bayesian optimisation."""
    items: int = CURVE_ITEMS
    """Items that curves are compared on; everything else takes all of the study."""
    rule_items: tuple[int, int] = (100, 300)
    seed: int = 0


@dataclass
class Result:
    """What was found."""

    schedules: dict[str, list[Schedule]] = field(default_factory=dict)
    """By method. A P-Sigmoid's, rule P-Sigmoid's and descent's budgets are the settings'."""
    steps: dict[str, list[g_search.GreedyStage]] = field(default_factory=dict)
    """Of the G-Searches, by method."""
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    """Of the Bayesian optimisations, by method."""
    rules: RuleTable | None = None
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
    low, high = bootstrap_interval([o.score for o in evaluation.outcomes])
    return {
        "accuracy": evaluation.accuracy,
        "low": low,
        "high": high,
        "value": evaluation.value,
        "n": len(evaluation.outcomes),
    }


def run(study: Study, settings: SearchSettings, more: Callable[[Result], None] = _nobody) -> Result:
    """Search; ``more`` is told after each schedule that was found.

    Raises EvaluationFailed where the engine fails, ConfigurationError for settings, and
    TimeLimitReached as the study.
    """
    result = Result(more=more)
    study.progress.begin("unreduced")
    study.unreduced()
    _paper(study, settings, result)
    if settings.kind == "all":
        _beyond(study, settings, result)
    return result


def _paper(study: Study, settings: SearchSettings, result: Result) -> None:
    """G-Search over single layers with one rule, and the P-Sigmoid around its curve."""
    starts = range(min(FIRST_ATTENTION_CUT, study.geometry.layers), study.geometry.layers)
    _g_search(study, settings, result, "g-search", starts, {})
    if settings.kind == "g-search":
        return
    curve = result.schedules["g-search"][0].keep
    family = Family(starts, {}, blind=False)
    fit = fit_logistic(curve, FIRST_ATTENTION_CUT)
    _p_sigmoid(study, settings, result, "p-sigmoid", family, fit)


def _beyond(study: Study, settings: SearchSettings, result: Result) -> None:
    """Searched rules, a question-blind first cut, and descent on the counts."""
    blind = [RankRule.parse("saliency"), RankRule.parse("random")]
    if study.has_cls:
        blind.insert(1, RankRule.parse("cls"))
    study.progress.begin("rules")
    table = search_rules(study, "rules", settings.rule_items, blind)
    result.rules = table
    starts = [0, *table.cut_layers]
    _g_search(study, settings, result, "g-search-blind", starts, table.rules)
    curve = result.schedules["g-search-blind"][0].keep
    family = Family(table.cut_layers, table.rules, blind=True)
    fit = fit_logistic(curve, FIRST_ATTENTION_CUT)
    _p_sigmoid(study, settings, result, "p-sigmoid-rules", family, fit)
    study.progress.begin("descent")
    how = Descent(table.cut_layers, table.rules, final=settings.items, enough=settings.tolerance)
    for schedule in result.schedules["p-sigmoid-rules"]:
        result.found("descent", descend(study, "descent", how, schedule))
    study.progress.begin("lossless")
    found = search_lossless(study, "lossless", result.schedules["descent"], settings.tolerance)
    result.found("lossless", found)


def _g_search(
    study: Study,
    settings: SearchSettings,
    result: Result,
    name: str,
    starts: Sequence[int],
    rules: Mapping[int, RankRule],
) -> None:
    study.progress.begin(name)
    how = g_search.GSearch(
        starts, rules, settings.tolerance, inner=settings.inner, weight=settings.weight
    )
    schedule, result.steps[name] = g_search.search(study, how, name)
    result.found(name, schedule)


def _p_sigmoid(
    study: Study, settings: SearchSettings, result: Result, name: str, family: Family, fit: Point
) -> None:
    study.progress.begin(name)
    result.trials[name] = []
    starts = [fit]
    for budget in sorted(settings.budgets, reverse=True):
        trials = search_sigmoid(
            study, name, family, budget, starts, settings.trials, settings.items, settings.seed
        )
        best = best_trial(trials)
        result.trials[name] += trials
        result.found(name, best.schedule)
        # what was best at one budget is the place to look first at the next
        starts = [fit, tuple(best.parameters.values())]


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
        """The best schedule of each budget, and each one without a budget.

        Of equals the earlier method is taken, which is the simpler one.
        """
        chosen = []
        rivals: dict[float, list[Scored]] = {}
        for scored in self.scored(result):
            if scored.schedule.budget is None:
                chosen.append(scored)
            else:
                rivals.setdefault(scored.schedule.budget, []).append(scored)
        best = [max(each, key=lambda scored: scored.evaluation.value) for each in rivals.values()]
        return chosen + best

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
    settings: SearchSettings, layers: int, n_vision: int, items: int, rest: int
) -> dict[str, int]:
    """Requests per stage, about: what is stopped early or equals an earlier one is guessed."""
    stages = max(0, layers - FIRST_ATTENTION_CUT)
    tries = g_search.BAYES_TRIALS if settings.inner == "bayes" else n_vision.bit_length() + 1
    greedy = round(tries * items * _NOT_STOPPED)
    found = {"unreduced": items, "g-search": stages * greedy}
    if settings.kind == "g-search":
        return {**found, "selection": 2 * rest}
    budgets, compared = len(settings.budgets), min(settings.items, items)
    runs = budgets * settings.trials * compared
    found["p-sigmoid"] = runs
    if settings.kind == "all":
        rough, fine = (min(each, items) for each in settings.rule_items)
        rules = stages * len(ATTENTION_RULES) * 2
        found["rules"] = rules * rough + stages * 6 * fine
        found["g-search-blind"] = (stages + 1) * greedy
        found["p-sigmoid-rules"] = runs
        # two sweeps in all, about half of all moves between two stages being possible
        moves = stages * (stages + 1) // 2
        found["descent"] = budgets * 2 * (moves * min(100, items) + 8 * compared)
        found["lossless"] = (budgets + 5) * items
    return {**found, "selection": (4 * budgets + 4) * rest}
