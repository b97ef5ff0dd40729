"""A schedule applied to one request: whole numbers, known before the forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vtr_vllm.ranking import Need, RankRule
from vtr_vllm.ranking.rules.previous import Previous
from vtr_vllm.schedules.keep_rates import adaptive_rules, cut_layers, keep_counts, mean


@dataclass(frozen=True)
class Plan:
    """How many of one request's vision tokens each layer sees; build it with ``make_plan``."""

    n_vision: int
    """Vision tokens in the prompt."""
    counts: tuple[int, ...]
    """Kept vision tokens per layer, ``[layers]``, never rising."""
    cuts: tuple[int, ...]
    """Layer indices before which the count falls, ascending, or the model may have it fall."""
    rules: tuple[RankRule, ...]
    """The rank rule of each cut, in the order of ``cuts``; the first is never ``previous``."""

    def dropped(self, layer: int) -> int:
        """Vision tokens that ``layer`` does not see."""
        return self.n_vision - self.counts[layer]

    @property
    def is_adaptive(self) -> bool:
        """Whether the counts are the most that may stay, and the model says how many do."""
        return bool(adaptive_rules(self.rules))

    def with_count(self, layer: int, count: int) -> "Plan":
        """The plan once the cut before ``layer`` is known to keep ``count`` of the tokens that it may.

        A later cut that has nothing left to drop is none.
        """
        behind = [min(count, most) for most in self.counts[layer:]]
        return self.with_counts([*self.counts[:layer], *behind])

    def with_counts(self, counts: Sequence[int]) -> "Plan":
        """The plan where each layer sees so many, none more than it may."""
        scheduled = dict(zip(self.cuts, self.rules, strict=True))
        return _plan(self.n_vision, counts, scheduled)

    def settled(self, counts: Sequence[int]) -> "Plan":
        """The plan of a schedule that would have stated ``counts``, which this plan's adaptive cuts found."""
        scheduled = {
            cut: rule.with_fixed_count() for cut, rule in zip(self.cuts, self.rules, strict=True)
        }
        return _plan(self.n_vision, counts, scheduled)

    @property
    def reduces(self) -> bool:
        """Whether any layer sees, or may come to see, fewer than all vision tokens."""
        return bool(self.cuts)

    @property
    def mean_keep(self) -> float:
        """The mean keep rate that the whole counts come to; 1.0 without vision tokens."""
        return mean(self.counts) / self.n_vision if self.n_vision else 1.0


def make_plan(keep: Sequence[float], rules: Sequence[RankRule], n_vision: int) -> Plan:
    """Apply a valid keep curve and its rules to ``n_vision`` tokens; a pure function.

    ``keep`` and ``rules`` are what ``Schedule`` holds and ``parse_wire`` returns. A scheduled
    cut whose count does not fall for this prompt is no cut of the plan, unless it is adaptive and more than one
    token is there. A ``previous`` that would have reused the order of such a cut takes over its rule instead
    (but not one of trained modules, behind another cut), and merges as before. Raises ValueError on a negative ``n_vision`` and when ``rules`` are not one per cut.
    """
    scheduled = dict(zip(cut_layers(keep, 1.0), rules, strict=True))
    return _plan(n_vision, keep_counts(keep, n_vision), scheduled)


def _plan(n_vision: int, counts: Sequence[int], scheduled: dict[int, RankRule]) -> Plan:
    """``scheduled``: the rules of all cuts that may happen, in depth order."""
    before = (n_vision, *counts)
    cuts = tuple(
        layer
        for layer, rule in scheduled.items()
        if counts[layer] < before[layer] or (rule.is_adaptive and before[layer] > 1)
    )
    return Plan(n_vision, tuple(counts), cuts, _resolve(scheduled, frozenset(cuts)))


def _resolve(scheduled: dict[int, RankRule], cuts: frozenset[int]) -> tuple[RankRule, ...]:
    """The rules of the cuts that happen; ``scheduled`` is in depth order."""
    resolved: list[RankRule] = []
    inherited: RankRule | None = None  # the rule of a vanished cut that no later cut replaced
    for layer, rule in scheduled.items():
        if layer not in cuts:
            inherited = inherited if isinstance(rule, Previous) else rule
            continue
        # Modules are trained for their own layer: behind it their last order is all that there is.
        is_bound = inherited is not None and Need.MODULES in inherited.needs and bool(resolved)
        if isinstance(rule, Previous) and inherited and not is_bound:
            rule = replace(inherited.with_fixed_count(), merge=rule.merge)
        resolved.append(rule)
        inherited = None
    return tuple(resolved)
