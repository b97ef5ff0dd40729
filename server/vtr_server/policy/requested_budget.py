"""Where a request may say what it wants, and which of these places wins.

The body's ``vtr`` > the header > the model's alias > ``image_url.detail`` > the default of the
API key > the default of the server. The first three are explicit: two that mean something else are
refused, and so is what lies outside of the caller's bounds. What the others say is moved into them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vtr_server.policy.settings import AUTO, BudgetSettings, KeySettings, ServerSettings
from vtr_server.policy.vtr_field import Ask, Read, parse_field
from vtr_vllm.errors import InvalidBudget, RequestError, show

__all__ = [
    "ADAPT_SUFFIX",
    "ALIAS",
    "HEADER",
    "REUSE_HEADER",
    "REUSE_SUFFIX",
    "UNSAID",
    "Asked",
    "Bounds",
    "Switch",
    "bounds",
    "default_budget",
    "find_ask",
    "short_form",
    "split_alias",
    "unreduced",
]

HEADER = "X-VTR-Budget"
REUSE_HEADER = "X-VTR-Reuse"
REUSE_SUFFIX = "+reuse"
ADAPT_SUFFIX = "+adapt"
"""What may stand behind a short form, one of them."""
ALIAS = "@"
FULL = "full"
"""The tier and the schedule that are budget 1.0 on every server."""

_EPS = 1e-9

_NUMBER = re.compile(r"[0-9]{0,4}\.?[0-9]{1,20}([eE]-?[0-9]{1,3})?", re.ASCII)
_TIER = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)

_RANK = ("low", "auto", "high")
"""Details of several images in one request: the most demanding one counts."""


@dataclass(frozen=True)
class Switch:
    """Something to be had beside a budget: that later requests reuse the KV of a request's images
    (``reuse``), that the prompt decides on its schedule (``adapt``)."""

    wanted: bool = False
    explicit: bool = False
    """Whether the client asked for just this: what cannot have it so is then refused."""


UNSAID = Switch()
"""Of a request that says nothing, on a server that does not either."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for, and which place said so."""

    ask: Ask
    by: str
    """The place, as answers name it."""
    explicit: bool = True
    """Whether the client asked for just this: it is then refused outside of the bounds, and never
    moved."""
    trace: bool = False
    per_image_floor: float | None = None
    """None: the schedule's own."""
    reuse: Switch = UNSAID
    adapt: Switch = UNSAID


@dataclass(frozen=True)
class Bounds:
    """The least and the largest budget that a request may run with."""

    minimum: float
    maximum: float

    def holds(self, budget: float) -> bool:
        """Whether it lies inside, but for rounding."""
        return self.minimum - _EPS <= budget <= self.maximum + _EPS

    def moved(self, budget: float) -> float:
        """The budget inside that is next to it."""
        return min(max(budget, self.minimum), self.maximum)


def default_budget(settings: ServerSettings, key: KeySettings | None) -> float | Literal["auto"]:
    """What a request of a caller runs with that asks for nothing, within the caller's bounds."""
    default = _default(settings, key)[0]
    return AUTO if default == AUTO else bounds(settings, key).moved(float(default))


def bounds(settings: ServerSettings, key: KeySettings | None) -> Bounds:
    """The policy for a caller: what the key says, else what the server says."""
    own = key.budget if key else BudgetSettings()
    return Bounds(
        own.minimum or settings.budget.minimum or 0.0,
        own.maximum or settings.budget.maximum or 1.0,
    )


def unreduced(asked: Asked, policy: Bounds) -> Asked:
    """The same at full budget, where the client leaves the budget to the server and may have that.

    For what cannot run reduced: whether it runs must not hang on the load.
    """
    leaves = not asked.explicit or asked.ask.budget == AUTO
    if not leaves or min(policy.maximum, asked.ask.maximum or 1.0) < 1.0:
        return asked
    return replace(asked, ask=Ask(budget=1.0))


def split_alias(model: str | None, served: Sequence[str]) -> tuple[str | None, str | None]:
    """``demo@0.25`` -> (``demo``, ``0.25``), if ``demo`` is served and the whole name is not."""
    if model is None or model in served:
        return model, None
    base, sign, wish = model.rpartition(ALIAS)
    return (base, wish) if sign and base in served else (model, None)


def find_ask(
    settings: ServerSettings,
    key: KeySettings | None,
    field: object,
    header: Sequence[str],
    alias: str | None,
    details: Sequence[str] = (),
    reuse_header: Sequence[str] = (),
) -> Asked:
    """What a request asks for; raises RequestError and its kin, as ``parse_field`` does."""
    body = parse_field(field)
    by_header = short_form(header, f"header {HEADER}") if header else Read()
    by_model = short_form([alias], f"model alias {ALIAS}") if alias is not None else Read()
    reuse = _switch(
        "reuse",
        {
            "body": body.reuse,
            f"header {REUSE_HEADER}": _true_or_false(reuse_header) if reuse_header else None,
            f"header {HEADER}": by_header.reuse,
            "model": by_model.reuse,
        },
        key.budget.reuse if key else None,
        settings.budget.reuse,
    )
    adapt = _switch(
        "adapt",
        {"body": body.adapt, f"header {HEADER}": by_header.adapt, "model": by_model.adapt},
        key.budget.adapt if key else None,
        settings.budget.adapt,
    )
    switches = _one_of(reuse, adapt)
    trace, floor = body.trace, body.per_image_floor
    found = [("body", body.ask), ("header", by_header.ask), ("model", by_model.ask)]
    explicit = [(by, ask) for by, ask in found if ask is not None]
    if len({_meaning(settings, ask) for _, ask in explicit}) > 1:
        said = " and ".join(f"the {by} asks for {_wish(ask)}" for by, ask in explicit)
        raise RequestError(f"{said}; they differ: leave out all but one")
    if explicit:
        by, ask = explicit[0]
        return Asked(ask, by, True, trace, floor, *switches)
    if detail := _detail(settings, details):
        return Asked(detail, "detail", False, trace, floor, *switches)
    default, by = _default(settings, key)
    return Asked(Ask(budget=default), by, False, trace, floor, *switches)


def _default(
    settings: ServerSettings, key: KeySettings | None
) -> tuple[float | Literal["auto"], str]:
    """The budget where nothing is asked for, bounds aside, and the place that says so."""
    if key and key.budget.default is not None:
        return key.budget.default, "key-default"
    return 1.0 if settings.budget.default is None else settings.budget.default, "default"


def _switch(
    name: str, places: Mapping[str, bool | None], of_key: bool | None, of_server: bool | None
) -> Switch:
    """What the client says in any of ``places``, else the key, else the server."""
    said = {by: wanted for by, wanted in places.items() if wanted is not None}
    if len(set(said.values())) > 1:
        each = " and ".join(
            f"the {by} asks for {name} {str(wish).lower()}" for by, wish in said.items()
        )
        raise RequestError(f"{each}; they differ: leave out all but one")
    if said:
        return Switch(next(iter(said.values())), explicit=True)
    return Switch(bool(of_server if of_key is None else of_key))


def _one_of(reuse: Switch, adapt: Switch) -> tuple[Switch, Switch]:
    """Both, of which at most one is on: what chooses by the question leaves nothing to reuse.

    Of two defaults ``reuse`` stays; what the client says goes before a default.
    """
    if not (reuse.wanted and adapt.wanted):
        return reuse, adapt
    if reuse.explicit and adapt.explicit:
        raise RequestError(
            "reuse and adapt are both true, and a schedule that is chosen for a prompt is another one"
            " for the next question about the same image: leave out one of them"
        )
    return (UNSAID, adapt) if adapt.explicit else (reuse, UNSAID)


def _true_or_false(values: Sequence[str]) -> bool:
    if list(values) not in (["true"], ["false"]):
        raise RequestError(
            f"header {REUSE_HEADER} is {show(list(values))}; it must be true or false"
        )
    return values[0] == "true"


def _meaning(settings: ServerSettings, ask: Ask) -> tuple[object, ...]:
    """Equal for asks that come to the same: a tier is what the settings say that it stands for.

    The bounds of ``auto`` are no part of it: only the body can name them, and they hold then.
    """
    meaning = settings.tiers.get(ask.tier, ask.tier) if ask.tier is not None else ask.schedule
    budget: object = 1.0 if meaning == FULL else ask.budget
    if isinstance(meaning, float):
        budget = meaning
    schedule = meaning if isinstance(meaning, str) and meaning != FULL else None
    unknown = ask.tier is not None and ask.tier not in settings.tiers
    inline = None if ask.keep is None else repr((ask.keep, ask.rules))
    return budget, schedule, unknown, ask.max_flops_fraction, inline


def _detail(settings: ServerSettings, details: Sequence[str]) -> Ask | None:
    """What ``image_url.detail`` means here; None where it has no meaning."""
    known = [detail for detail in details if detail in settings.detail]
    if not known:
        return None
    meaning = settings.detail[max(known, key=_RANK.index)]
    if isinstance(meaning, float):
        return Ask(budget=meaning)
    return Ask(budget=AUTO) if meaning == AUTO else Ask(tier=meaning)


def short_form(values: Sequence[str], place: str) -> Read:
    """The short form of an ask: a number, ``auto``, or the name of a tier; ``+reuse`` may follow."""
    text = values[0] if len(values) == 1 else ""
    value = text.removesuffix(REUSE_SUFFIX)
    reuse = True if value != text else None
    adapt = None
    if reuse is None and text.endswith(ADAPT_SUFFIX):
        value, adapt = text.removesuffix(ADAPT_SUFFIX), True
    if value == AUTO:
        return Read(Ask(budget=AUTO), reuse=reuse, adapt=adapt)
    if _NUMBER.fullmatch(value) and 0 < float(value) <= 1:
        return Read(Ask(budget=float(value)), reuse=reuse, adapt=adapt)
    if _TIER.fullmatch(value):
        return Read(Ask(tier=value), reuse=reuse, adapt=adapt)
    raise InvalidBudget(
        f"{place} is {show(list(values))}; it must be one decimal number in (0, 1] such as 0.25,"
        f" the name of a tier, or auto, and may end in {REUSE_SUFFIX} or {ADAPT_SUFFIX}"
    )


def _wish(ask: Ask) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in vars(ask).items() if value)
