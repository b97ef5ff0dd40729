"""Schedules searched on the prompts that choose them, and chosen anew with what was found.

As in k-means, assignment and members are improved in turn. The assignment is by what a predictor
says of prompts that it has not seen, not by their outcomes: what a server cannot tell apart is no
use to search for.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vtr_vllm.adaptive import Prompt
from vtr_vllm.adaptive.predictor import FloatArray
from vtr_vllm.adaptive.price import picks
from vtr_vllm.search.adaptive.fitting import Features, matrix, rough_predictions
from vtr_vllm.search.adaptive.moves import neighbours
from vtr_vllm.search.adaptive.selection import prices, select
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.study import BLOCK, Study

STAGE = "family"


@dataclass(frozen=True)
class Refinement:
    """What to search."""

    budgets: Sequence[float]
    members: int
    rounds: int = 2
    """Of assigning and searching."""
    items: int = 300
    """That the members are chosen on."""
    least: int = 30
    """Prompts that a schedule is searched on; fewer say too little."""
    sweeps: int = 4
    """Moves at most of one schedule in a round."""
    moves: int = 24
    """Tried at most in a sweep, drawn where there are more."""
    seed: int = 0


@dataclass
class FamilySearch:
    """The pool so far, and what each of it scores on the items that members are chosen on."""

    study: Study
    """Of the items that are searched on."""
    prompts: Sequence[Prompt]
    """Of these items, in their order."""
    settings: Refinement
    found: dict[Candidate, Evaluation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._draws = np.array([prompt.draw for prompt in self.prompts])

    def add(self, candidates: Sequence[Candidate]) -> None:
        """Score candidates, and have them in the pool."""
        new = [each for each in dict.fromkeys(candidates) if each not in self.found]
        scored = self.study.evaluate(STAGE, new, self.settings.items)
        self.found |= dict(zip(new, scored, strict=True))

    def run(self) -> list[Candidate]:
        """The members, ascending in cost, after all rounds."""
        members = self._members()
        for number in range(self.settings.rounds):
            before = len(self.found)
            self.add(self._searched(members, number))
            members = self._members()
            self.study.progress.step(
                f"round {number + 1}: {len(self.found) - before} schedules found on the prompts that"
                f" choose them; members keep {', '.join(f'{_cost(each):.3f}' for each in members)}"
            )
        return members

    def _members(self) -> list[Candidate]:
        pool, predicted, costs = self._predicted()
        priced = prices(predicted, costs, self._draws[: len(predicted)], self.settings.budgets)
        return [pool[index] for index in select(predicted, costs, priced, self.settings.members)]

    def _predicted(self) -> tuple[list[Candidate], FloatArray, FloatArray]:
        """The pool, what it is predicted to score ``[n, pool]``, and what it costs."""
        pool = list(self.found)
        scores = _scores([self.found[each] for each in pool])
        predicted = self._guessed(scores)
        return pool, predicted, np.array([_cost(each) for each in pool])

    def _guessed(self, scores: FloatArray) -> FloatArray:
        count = len(scores)
        groups = self.study.dataset.groups[:count]
        return rough_predictions(self._features[:count], scores, groups, self.settings.seed)

    @cached_property
    def _features(self) -> Features:
        return matrix(self.prompts)

    def _searched(self, members: Sequence[Candidate], number: int) -> list[Candidate]:
        """For each budget and each member that enough prompts choose, what is better for these."""
        scores = _scores([self.found[each] for each in members])
        predicted = self._guessed(scores)
        costs = np.array([_cost(each) for each in members])
        draws = self._draws[: len(scores)]
        better: dict[Candidate, None] = {}
        for budget, price in zip(
            self.settings.budgets,
            prices(predicted, costs, draws, self.settings.budgets),
            strict=True,
        ):
            chosen = picks(predicted, costs, np.full(len(scores), price))
            for index, member in enumerate(members):
                own = np.flatnonzero(chosen == index).astype(np.int64)
                if len(own) >= self.settings.least:
                    name = f"round {number + 1}, budget {budget:g}, schedule {index + 1}"
                    better[self._climb(member, price, own, name)] = None
        return list(better)

    def _climb(
        self, start: Candidate, price: float, own: npt.NDArray[np.int64], name: str
    ) -> Candidate:
        """The best schedule that single moves lead to, by score less price times cost."""
        study = self.study.part(own[:BLOCK].tolist())

        def worth(found: Evaluation) -> float:
            # a price is in units of the score, whatever the search's objective
            scored = sum(o.utility("accuracy") for o in found.outcomes) / len(found.outcomes)
            return scored - price * _cost(found.candidate)

        (best,) = first = study.evaluate(STAGE, [start])
        draw = random.Random(f"{self.settings.seed} {name}")
        for _ in range(self.settings.sweeps):
            options = neighbours(best.candidate, self.study.n_vision)
            if len(options) > self.settings.moves:
                options = draw.sample(options, self.settings.moves)
            tried = max(study.evaluate(STAGE, options), key=worth, default=best)
            if worth(tried) <= worth(best):
                break
            best = tried
        self.study.progress.step(
            f"{name}: {len(own)} prompts, keeps {_cost(start):.3f} -> {_cost(best.candidate):.3f},"
            f" accuracy {first[0].accuracy:.3f} -> {best.accuracy:.3f}"
        )
        return best.candidate


def _scores(found: Sequence[Evaluation]) -> FloatArray:
    """[items, candidates]"""
    return np.array([[o.score for o in each.outcomes] for each in found]).T


def _cost(candidate: Candidate) -> float:
    return sum(candidate.keep) / len(candidate.keep)
