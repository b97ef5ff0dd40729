"""What is known of a candidate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.outcomes import Outcome, best_utility, utility_range
from vtr_vllm.search.stopping import LEAST_GROUPS, likely_highest
from vtr_vllm.search_options import Objective


@dataclass(frozen=True)
class Evaluation:
    """What is known of a candidate: the outcomes of the first items asked, in their order."""

    candidate: Candidate
    outcomes: tuple[Outcome, ...]
    asked: int
    """Items that were asked for; more than there are outcomes if it was stopped."""
    objective: Objective
    groups: tuple[int, ...]
    """Of the items asked, as the data set has them: those of one group share images."""

    @property
    def complete(self) -> bool:
        """Whether every item was answered."""
        return len(self.outcomes) == self.asked

    @cached_property
    def value(self) -> float:
        """Mean utility: what the search maximises."""
        return math.fsum(o.utility(self.objective) for o in self.outcomes) / len(self.outcomes)

    @cached_property
    def accuracy(self) -> float:
        """Mean of the items' metrics."""
        return math.fsum(o.score for o in self.outcomes) / len(self.outcomes)

    @property
    def highest_possible(self) -> float:
        """The value if every item left over went as well as an item can."""
        left = (self.asked - len(self.outcomes)) * best_utility(self.objective)
        # summed as `value` is: with another rounding, what just passes would be given up
        utilities = (o.utility(self.objective) for o in self.outcomes)
        return math.fsum([*utilities, left]) / self.asked

    def highest(self, full: Sequence[Outcome]) -> float:
        """The value that it can reach, or hardly exceeds, given the unreduced model's on every item asked."""
        groups = len(set(self.groups[: len(self.outcomes)]))
        if self.complete or groups < LEAST_GROUPS or len(full) != self.asked:
            return self.highest_possible
        values, others = (
            [o.utility(self.objective) for o in each] for each in (self.outcomes, full)
        )
        likely = likely_highest(values, others, self.groups, utility_range(self.objective))
        return min(self.highest_possible, likely)
