"""From what was asked to a schedule, within the caller's policy."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from vtr_server.policy.requested_budget import (
    ADAPT_SUFFIX,
    REUSE_SUFFIX,
    UNSAID,
    Bounds,
    Switch,
)
from vtr_server.policy.settings import AUTO
from vtr_server.policy.vtr_field import AdaptiveAnswer, Ask, AutoAnswer
from vtr_vllm.adaptive import ScheduleFamily
from vtr_vllm.errors import (
    BudgetNotAllowed,
    ConfigurationError,
    InvalidBudget,
    RequestError,
    UnknownSchedule,
    UnknownTier,
    UnsupportedRequest,
    show,
)
from vtr_vllm.schedules import (
    FORMS,
    ModelGeometry,
    Schedule,
    ScheduleBook,
    explicit,
    flops_fraction,
    p_sigmoid,
)
from vtr_vllm.schedules.wire import Wire

__all__ = ["ChosenSchedule", "ScheduleChooser", "describe"]

_GRID = 128
"""Steps of the grid in (0, 1]."""

_EPS = 1e-9


@dataclass(frozen=True)
class ChosenSchedule:
    """The schedule that a request runs with."""

    budget: float
    schedule: Schedule
    source: str
    tier: str | None = None
    auto: AutoAnswer | None = None
    adaptive: AdaptiveAnswer | None = None
    reuse: bool = False
    """Whether later requests can use its KV; of full budget, which vLLM caches by itself, False."""

    @property
    def wire(self) -> Wire:
        """What travels to the engine; nothing at full budget, which is vLLM's own path."""
        return {} if self.schedule.mean_keep == 1.0 else self.schedule.wire()

    def with_floor(self, floor: float | None) -> Self:
        """The same with another per-image floor than the schedule's own; None: that one."""
        if floor is None:
            return self
        return replace(self, schedule=replace(self.schedule, per_image_floor=floor))

    def after(self, before: Self | None) -> Self:
        """The same, telling also what earlier prompts of the request were given."""
        if before is None or before.adaptive is None or self.adaptive is None:
            return self
        schedules = [*before.adaptive.schedules, *self.adaptive.schedules]
        own = self.adaptive.model_copy(update={"schedules": schedules})
        return replace(self, adaptive=own)


@dataclass(frozen=True)
class ScheduleChooser:
    """Everything that a choice depends on beside the request."""

    book: ScheduleBook
    tiers: Mapping[str, float | str]
    auto: Callable[[Bounds], tuple[float, float]] | None = None
    """Bounds -> the controller's level, and the budget that it gives within them; None without a
    controller."""
    caches_prefixes: bool = True
    """Whether the engine does: nothing is reused without."""
    checkpoint: str | None = None
    """What tells the model's weights from others of its name; None: not known."""
    family: ScheduleFamily | None = None
    """What a prompt's own schedule is chosen from."""
    confidence: float = 0.0
    """See ``AdaptiveSettings``."""

    def choose(
        self, ask: Ask, policy: Bounds, *, movable: bool = False, reuse: Switch = UNSAID
    ) -> ChosenSchedule:
        """The choice for every way of asking but ``max_flops_fraction``.

        What is ``movable``, a default or a detail, is moved to the bound of ``policy`` next to it.
        Raises InvalidBudget, UnknownSchedule, UnknownTier or ScheduleError for what cannot be
        met, UnsupportedRequest for ``auto`` without a controller, BudgetNotAllowed outside
        ``policy``, RequestError for a schedule that an explicit ``reuse`` excludes, and for
        ``reuse`` without prefix caching.
        """
        self._check_caching(reuse)
        if ask.budget == AUTO:
            return self._by_load(ask, policy, reuse)
        choice = self._of_ask(ask, reuse)
        self._check_reuse(choice, reuse)
        may_keep_less = policy.minimum > 0 and choice.schedule.is_adaptive
        if policy.holds(choice.budget) and not may_keep_less:
            return choice
        if not movable:
            least = f"schedule {choice.schedule.name} has adaptive cuts, which may keep less than"
            outside = f"budget {choice.budget:g} lies outside"
            raise BudgetNotAllowed(
                f"{least if may_keep_less else outside} {_range(policy)}; ask for one inside"
            )
        return self._of_budget(policy.moved(choice.budget), reuse)

    def choose_by_flops(
        self,
        fraction: float,
        policy: Bounds,
        n_vision: int,
        n_text: int,
        reuse: Switch = UNSAID,
    ) -> ChosenSchedule:
        """The largest budget whose prefill costs at most ``fraction`` of no reduction.

        A prompt without vision tokens has nothing to reduce. Raises InvalidBudget, with the
        least share that this prompt can come to, where no budget within ``policy`` is enough, and
        RequestError for ``reuse`` without prefix caching.
        """
        self._check_caching(reuse)
        if n_vision == 0:
            return self._of_budget(policy.maximum, reuse)
        grid = self.grids[_reuse(reuse)]
        inside = [each for each in grid if policy.minimum < each.budget < policy.maximum]
        ends = {policy.minimum, policy.maximum} - {0.0}
        choices = [*inside, *(self._of_budget(end, reuse) for end in ends)]
        costs = {}
        # Every one is looked at: of two schedules the one with the larger budget may cost less.
        for choice in sorted(choices, key=lambda each: each.budget, reverse=True):
            counts = choice.schedule.counts(n_vision)
            costs[choice.budget] = flops_fraction(self.book.geometry, counts, n_vision, n_text)
            if costs[choice.budget] <= fraction + _EPS:
                return choice
        least = min(costs, key=lambda budget: costs[budget])
        raise InvalidBudget(
            f"max_flops_fraction {fraction} cannot be met: this prompt has {n_vision} vision"
            f" tokens and {n_text} others, and costs at least {costs[least]:.4f}, at budget"
            f" {least:g}; ask for more"
        )

    @cached_property
    def grids(self) -> dict[bool | None, list[ChosenSchedule]]:
        """The budgets that ``max_flops_fraction`` looks at, for each ``reuse`` of the book; tens of
        milliseconds, once."""
        steps = [step / _GRID for step in range(1, _GRID + 1)]
        switches = (UNSAID, Switch(wanted=True), Switch(wanted=False, explicit=True))
        return {_reuse(each): [self._of_budget(step, each) for step in steps] for each in switches}

    def offered_tiers(self) -> dict[str, float]:
        """The tiers that can be asked for now, with the budgets that they come to."""
        offered = {}
        for name, meaning in self.tiers.items():
            try:
                offered[name] = self._of_meaning(meaning).budget
            except RequestError:
                continue
        return offered

    def check_tiers(self, tiers: Mapping[str, float | str]) -> None:
        """Raise ConfigurationError for one that the model can never meet; what is not stored may be yet."""
        for name, meaning in tiers.items():
            try:
                self._of_meaning(meaning)
            except UnknownSchedule:
                continue
            except RequestError as err:
                raise ConfigurationError(
                    f"tier {name} = {meaning!r} of the settings: {err}"
                ) from err

    def aliases(self) -> list[str]:
        """What may stand behind ``MODEL@``: the tiers, the budgets of stored schedules, and both once
        more with ``+reuse``, where that has a meaning."""
        auto = [AUTO] if self.auto else []
        plain = [*self.offered_tiers(), *self._stored_budgets(), *auto]
        if not self.caches_prefixes:
            return [*plain, *self._adapted()]
        wanted = Switch(wanted=True)
        tiers = [
            name
            for name in self.offered_tiers()
            if self._of_meaning(self.tiers[name], wanted).reuse
        ]
        reused = [*tiers, *self._stored_budgets(only_reused=True), *auto]
        return [*plain, *(alias + REUSE_SUFFIX for alias in reused), *self._adapted()]

    def _adapted(self) -> list[str]:
        if self.family is None:
            return []
        least = self.family.least
        budgets = [each for each in self._stored_budgets() if float(each) >= least]
        return [each + ADAPT_SUFFIX for each in [*budgets, *([AUTO] if self.auto else [])]]

    def _stored_budgets(self, *, only_reused: bool = False) -> list[str]:
        entries = [each for each in self.book.describe() if each["reuse"] or not only_reused]
        budgets = [entry["budget"] for entry in entries if entry["budget"] not in (None, 1.0)]
        return sorted({f"{budget:g}" for budget in budgets}, reverse=True)

    def _check_caching(self, reuse: Switch) -> None:
        if reuse.explicit and reuse.wanted and not self.caches_prefixes:
            raise RequestError(
                "reuse is true, and this server runs without prefix caching: nothing would be reused;"
                " leave reuse out, or have the server started without --no-enable-prefix-caching"
            )

    def _check_reuse(self, choice: ChosenSchedule, reuse: Switch) -> None:
        """Refuse a schedule of the other kind than the client asks for; full budget is of both."""
        schedule = choice.schedule
        if not reuse.explicit or not schedule.cuts or choice.reuse == reuse.wanted:
            return
        why = self.book.why_not_reused(schedule)
        kind = f"cannot be reused: {why}" if why else "is reused: it looks at no question"
        raise RequestError(
            f"reuse is {str(reuse.wanted).lower()}, and schedule {schedule.name} {kind}; leave reuse"
            f" out (or {str(choice.reuse).lower()}), ask for a budget, or for a schedule whose reuse"
            f" GET /v1/schedules gives as {str(reuse.wanted).lower()}"
        )

    def _of_ask(self, ask: Ask, reuse: Switch) -> ChosenSchedule:
        if ask.tier is not None:
            return self._of_tier(ask.tier, reuse)
        if ask.schedule is not None:
            return self._named(ask.schedule)
        if ask.keep is not None and ask.rules is not None:
            schedule = explicit(self.book.geometry, ask.keep, ask.rules, name="inline")
            return self._chosen(schedule.mean_keep, schedule, "inline")
        return self._of_budget(1.0 if ask.budget is None else float(ask.budget), reuse)

    def _by_load(self, ask: Ask, policy: Bounds, reuse: Switch) -> ChosenSchedule:
        if self.auto is None:
            raise UnsupportedRequest(
                'budget "auto" needs a controller, and this server runs without one; ask for a'
                " number, or add [elastic] to the server's settings"
            )
        within = Bounds(
            max(policy.minimum, ask.minimum or 0.0), min(policy.maximum, ask.maximum or 1.0)
        )
        if within.minimum > within.maximum:
            raise BudgetNotAllowed(
                f'budget "auto" {_between(ask)} lies outside {_range(policy)}; move the bounds'
            )
        level, budget = self.auto(within)
        auto = AutoAnswer(level=level, minimum=within.minimum, maximum=within.maximum)
        return replace(self._of_budget(budget, reuse), auto=auto)

    def _chosen(self, budget: float, schedule: Schedule, source: str) -> ChosenSchedule:
        return ChosenSchedule(budget, schedule, source, reuse=self.book.reuses(schedule))

    def _of_budget(self, budget: float, reuse: Switch) -> ChosenSchedule:
        selection = self.book.for_budget(budget, _reuse(reuse))
        return self._chosen(budget, selection.schedule, selection.source)

    def _named(self, name: str) -> ChosenSchedule:
        schedule = self.book.by_name(name)
        stored = schedule.name in self.book.names()
        source = "full" if schedule.name == "full" else "searched" if stored else "built-in-form"
        budget = schedule.mean_keep if schedule.budget is None else schedule.budget
        return self._chosen(budget, schedule, source)

    def _of_tier(self, name: str, reuse: Switch) -> ChosenSchedule:
        meaning = self.tiers.get(name)
        if meaning is None:
            raise UnknownTier(
                f"tier {show(name)} is unknown; there are {', '.join(self.offered_tiers())}"
            )
        try:
            return replace(self._of_meaning(meaning, reuse), tier=name)
        except UnknownSchedule as err:
            raise UnknownTier(
                f"tier {name} stands for schedule {meaning}, which is not stored; there are"
                f" {', '.join(self.offered_tiers())}"
            ) from err

    def _of_meaning(self, meaning: float | str, reuse: Switch = UNSAID) -> ChosenSchedule:
        """What a tier stands for; raises UnknownSchedule."""
        if isinstance(meaning, str):
            return self._named(meaning)
        return self._of_budget(meaning, reuse)


def _reuse(asked: Switch) -> bool | None:
    """As the book takes it: whoever does not say gets the better schedule of the two kinds."""
    return True if asked.wanted else False if asked.explicit else None


def _between(ask: Ask) -> str:
    """The bounds that a request sets for ``auto``: one, or both."""
    if ask.minimum is None or ask.maximum is None:
        return f"up to {ask.maximum}" if ask.minimum is None else f"of at least {ask.minimum}"
    return f"between {ask.minimum} and {ask.maximum}"


def _range(policy: Bounds) -> str:
    return f"what you may ask for here, {policy.minimum:g} to {policy.maximum:g}"


def describe(chooser: ScheduleChooser) -> dict[str, Any]:
    """The body of GET /v1/schedules for a caller without bounds; the same as long as the book is."""
    book = chooser.book
    return {
        "object": "list",
        "data": book.describe(),
        "forms": [_describe_form(book.geometry, form) for form in FORMS if form != "full"],
        "inline": _describe_inline(book.geometry),
        "budget": {
            "exclusive_minimum": 0.0,
            "minimum": 0.0,
            "maximum": 1.0,
            "default": 1.0,
            "means": "mean share of the vision tokens kept over all layers",
        },
        "tiers": chooser.offered_tiers(),
        "auto": chooser.auto is not None,
        "prefix_caching": chooser.caches_prefixes,
        "checkpoint": chooser.checkpoint,
        "family": None if chooser.family is None else chooser.family.describe(),
        "band_starts": None if book.band_starts is None else list(book.band_starts),
        "geometry": book.geometry.to_dict(),
        "fingerprint": book.geometry.fingerprint,
    }


def _describe_form(geometry: ModelGeometry, form: str) -> dict[str, Any]:
    return {
        "name": f"{form}-<budget>",
        "example": f"{form}-0.5",
        "least_budget": _least_budget(geometry, form),
        "description": inspect.getdoc(FORMS[form]),
    }


def _describe_inline(geometry: ModelGeometry) -> dict[str, Any]:
    example = p_sigmoid(geometry, 0.5)
    return {
        "keep": f"{geometry.layers} keep rates in [0, 1], one per layer, never rising",
        "rules": "one rank rule per cut, in depth order; empty where every rate is 1",
        "example": {
            "keep": list(example.keep),
            "rules": [str(rule) for rule in example.rules],
        },
    }


def _least_budget(geometry: ModelGeometry, form: str) -> float | None:
    """The least budget of four decimals, as in a form's name, that this model allows."""
    for step in range(1, 10_001):
        try:
            FORMS[form](geometry, step / 10_000)
        except InvalidBudget:
            continue
        return step / 10_000
    return None
