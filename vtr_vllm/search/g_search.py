"""G-Search: the fewest vision tokens per layer that lose no quality (arXiv 2412.00556, scenario I).

Greedy, from shallow to deep. For each stage of layers it finds the least count that keeps the value
within a tolerance of the unreduced model's, while all deeper layers hold the same count; the
range is what the stage before was left with. That is the optimum under the paper's assumption, that
the tokens a layer needs are among those that the layer before needs (its abstract). The assumption
also makes the value monotone in the count, so bisection finds the least; the paper's own form,
Bayesian optimisation of effectiveness plus lambda times efficiency, is the other ``inner`` search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import FIRST_ATTENTION_CUT, RankRule, Schedule
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.proposer import Dimension, Proposer
from vtr_vllm.search.study import Study
from vtr_vllm.search_options import Inner

BAYES_TRIALS = 12
"""Counts that the Bayesian form tries per stage, unless told otherwise."""


@dataclass(frozen=True)
class GreedyStage:
    """What one stage came to."""

    layer: int
    """First layer of the stage."""
    count: int
    """Vision tokens that the stage keeps."""
    keep: float
    accuracy: float
    """Of the schedule so far, with all deeper layers at this count."""
    value: float
    mean_keep: float
    evaluations: int
    """Candidates evaluated for this stage."""


@dataclass(frozen=True)
class GSearch:
    """What to search: see ``search``."""

    starts: Sequence[int]
    """First layer of each stage, rising; layers before the first run in full."""
    rules: Mapping[int, RankRule]
    """Rank rule of a cut, by layer; ``last`` where none is given."""
    tolerance: float
    """How far below the unreduced model's value a schedule may be, in units of value."""
    grain: int = 1
    """Counts are searched in multiples of this many tokens."""
    inner: Inner = "bisection"
    weight: float = 0.005
    """Lambda of the Bayesian form: the worth of a stage's whole efficiency, in units of value."""
    trials: int = BAYES_TRIALS
    """Counts that the Bayesian form tries per stage."""
    seed: int = 0
    """Of its proposals."""


def search(study: Study, settings: GSearch, name: str) -> tuple[Schedule, list[GreedyStage]]:
    """Run G-Search; returns the schedule and the steps to it.

    Raises ConfigurationError for settings out of range, EvaluationFailed as the study.
    """
    _check(settings, study.geometry.layers)
    n, layers = study.n_vision, study.geometry.layers
    floor = study.unreduced().value - settings.tolerance
    counts = [n] * layers
    steps = []
    for start in settings.starts:
        finder = _Stage(study, settings, name, tuple(counts), start, floor)
        find = finder.bisect if settings.inner == "bisection" else finder.optimise
        count, found = find()
        counts[start:] = [count] * (layers - start)
        step = GreedyStage(
            layer=start,
            count=count,
            keep=count / n,
            accuracy=found.accuracy,
            value=found.value,
            mean_keep=sum(counts) / n / layers,
            evaluations=finder.evaluations,
        )
        steps.append(step)
        study.progress.step(
            f"layer {start} keeps {count} of {n} ({found.accuracy:.3f})", **asdict(step)
        )
    candidate = _candidate(counts, settings.rules, n)
    schedule = Schedule(
        name=name,
        geometry=study.geometry,
        keep=candidate.keep,
        rules=candidate.rules,
        method=name,
        parameters=_parameters(settings, steps),
    )
    return schedule, steps


class _Stage:
    """The search for one stage's count."""

    def __init__(
        self,
        study: Study,
        settings: GSearch,
        name: str,
        counts: tuple[int, ...],
        start: int,
        floor: float,
    ) -> None:
        self._study, self._settings, self._name = study, settings, name
        self._counts, self._start, self._floor = counts, start, floor
        self.evaluations = 0

    def bisect(self) -> tuple[int, Evaluation]:
        """The least passing count in 0 .. the stage before's, in steps of the grain."""
        grain, most = self._settings.grain, self._counts[self._start - 1 if self._start else 0]
        levels = sorted({*range(0, most + 1, grain), most})
        # keeping what is there passes, or the stage before would not have been left with it
        best = len(levels) - 1
        found = self._evaluate(levels[best], floor=None)
        low = -1
        while best - low > 1:
            middle = (low + best) // 2
            tried = self._evaluate(levels[middle], floor=self._floor)
            if tried.complete and tried.value >= self._floor:
                best, found = middle, tried
            else:
                low = middle
        return levels[best], found

    def optimise(self) -> tuple[int, Evaluation]:
        """The count of greatest effectiveness plus weighted efficiency, by Bayesian optimisation."""
        most = self._counts[self._start - 1 if self._start else 0]
        if most == 0:
            return 0, self._evaluate(0, floor=None)  # nothing is left to drop
        n, settings = self._study.n_vision, self._settings
        # distinct seeds, or every stage would try the same shares
        seed = (settings.seed * len(self._counts) + self._start) % (1 << 32)
        proposer = Proposer([Dimension("share", 0.0, 1.0)], seed=seed, first=[(1.0,)])
        best, found, most_worth = most, self._evaluate(most, floor=None), float("-inf")
        for _ in range(settings.trials):
            (point,) = proposer.ask(1)
            count = round(point[0] * most)
            efficiency = settings.weight * (1 - count / n)
            tried = self._evaluate(count, floor=most_worth - efficiency)
            worth = tried.value + efficiency
            if not tried.complete:
                # it was right of other items: it is known to be no better than the best
                worth = min(worth, most_worth)
            proposer.tell([point], [worth])
            if tried.complete and worth > most_worth:
                best, found, most_worth = count, tried, worth
        return best, found

    def _evaluate(self, count: int, floor: float | None) -> Evaluation:
        counts = [*self._counts[: self._start], *[count] * (len(self._counts) - self._start)]
        candidate = _candidate(counts, self._settings.rules, self._study.n_vision)
        self.evaluations += 1
        (found,) = self._study.evaluate(self._name, [candidate], floor=floor)
        return found


def _candidate(counts: Sequence[int], rules: Mapping[int, RankRule], n: int) -> Candidate:
    by_layer = [rules.get(layer, RankRule.parse("last")) for layer in range(len(counts))]
    return Candidate.from_counts(counts, by_layer, n)


def _check(settings: GSearch, layers: int) -> None:
    starts = list(settings.starts)
    if not starts or starts != sorted(set(starts)) or not 0 <= starts[0] <= starts[-1] < layers:
        raise ConfigurationError(
            f"G-Search stages begin at {starts}; give rising layer indices in 0..{layers - 1}"
        )
    for start in starts:
        rule = settings.rules.get(start)
        blind = rule is not None and not rule.sees_question and not rule.needs_attention
        if start < FIRST_ATTENTION_CUT and not blind:
            raise ConfigurationError(
                f"G-Search has a stage at layer {start} without a question-blind rule; attention"
                f" ranks from layer {FIRST_ATTENTION_CUT} on: give it saliency, cls or random"
            )
    if settings.tolerance < 0 or settings.grain < 1:
        raise ConfigurationError(
            f"G-Search tolerance is {settings.tolerance}, grain {settings.grain}; the tolerance"
            " must be at least 0, the grain at least 1"
        )


def _parameters(settings: GSearch, steps: Sequence[GreedyStage]) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "starts": list(settings.starts),
        "inner": settings.inner,
        "grain": settings.grain,
        "steps": [asdict(step) for step in steps],
    }
    if settings.inner == "bisection":
        return parameters | {"tolerance": settings.tolerance}
    return parameters | {"lambda": settings.weight}
