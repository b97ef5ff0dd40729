"""Where a request says what it wants, and which place wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.bad_input import HEADERS
from vtr_server.policy.requested_budget import (
    Asked,
    Bounds,
    Switch,
    bounds,
    default_budget,
    find_ask,
    split_alias,
    unreduced,
)
from vtr_server.policy.settings import BudgetSettings, KeySettings, ServerSettings
from vtr_server.policy.vtr_field import Ask
from vtr_vllm.errors import InvalidBudget, RequestError

SETTINGS = ServerSettings.model_validate(
    {
        "budget": {"default": 0.9, "minimum": 0.2},
        "detail": {"low": "economy", "auto": 0.5, "high": "full"},
    }
)


def key(**budget: Any) -> KeySettings:
    return KeySettings.model_validate({"name": "k", "sha256": "0" * 64, "budget": budget})


KEY = key(default=0.8, minimum=0.3)


def find(
    field: object = None,
    header: tuple[str, ...] = (),
    alias: str | None = None,
    details: tuple[str, ...] = (),
    caller: KeySettings | None = KEY,
    settings: ServerSettings = SETTINGS,
    reuse: tuple[str, ...] = (),
) -> Asked:
    return find_ask(settings, caller, field, header, alias, details, reuse)


PLACES: list[tuple[str, dict[str, Any], Ask]] = [
    ("body", {"field": {"budget": 0.4}}, Ask(budget=0.4)),
    ("header", {"header": ("0.4",)}, Ask(budget=0.4)),
    ("model", {"alias": "0.4"}, Ask(budget=0.4)),
    ("detail", {"details": ("low",)}, Ask(tier="economy")),
    ("key-default", {}, Ask(budget=0.8)),
]


@given(st.sets(st.sampled_from(range(4))))
def test_the_first_place_that_says_anything_decides(spoken: set[int]) -> None:
    """The explicit ones agree here: what they say when they differ is the next test."""
    given_ = [PLACES[i] for i in sorted(spoken)] + [PLACES[-1]]
    by, _, ask = given_[0]
    asked = find(**{name: value for _, place, _ in given_ for name, value in place.items()})
    assert asked == Asked(ask, by, explicit=by in ("body", "header", "model"))


def test_the_servers_default_comes_last() -> None:
    """As it is: the chooser moves it into the bounds of the caller."""
    for caller in (None, key(), key(maximum=0.5), key(minimum=0.95)):
        assert find(caller=caller) == Asked(Ask(budget=0.9), "default", explicit=False)
    assert find(caller=None, settings=ServerSettings()).ask == Ask(budget=1.0)
    elastic = ServerSettings.model_validate(
        {"budget": {"default": "auto"}, "elastic": {"ttft_seconds": 1.0}}
    )
    assert find(caller=None, settings=elastic).ask == Ask(budget="auto")


WISHES = {"0.25": "0.25", ".250": "0.25", "economy": "0.25", "0.5": "0.5", "1": "1", "full": "1"}
WISHES |= {"auto": "auto", "lossless": "lossless", "gold": "gold"}
"""What each asks for, as the settings have it; gold is no tier."""


@given(
    body=st.none() | st.sampled_from(sorted(WISHES)),
    header=st.none() | st.sampled_from(sorted(WISHES)),
    alias=st.none() | st.sampled_from(sorted(WISHES)),
)
def test_explicit_places_agree_or_are_refused(
    body: str | None, header: str | None, alias: str | None
) -> None:
    def field(wish: str) -> dict[str, Any]:
        if wish in ("economy", "full", "lossless", "gold"):
            return {"tier": wish}
        return {"budget": wish if wish == "auto" else float(wish)}

    first = body or header or alias
    said = {WISHES[wish] for wish in (body, header, alias) if wish is not None}
    arguments: dict[str, Any] = {
        "field": field(body) if body else None,
        "header": (header,) if header else (),
        "alias": alias,
        "details": ("high",),
    }
    if len(said) > 1:
        with pytest.raises(RequestError, match="they differ: leave out all but one"):
            find(**arguments)
    elif first:
        by = "body" if body else "header" if header else "model"
        assert find(**arguments).by == by
        assert find(**arguments).ask == find(field=field(first)).ask
    else:
        assert find(**arguments).by == "detail"


def test_a_refused_contradiction_names_the_places_and_their_wishes() -> None:
    with pytest.raises(
        RequestError,
        match="the body asks for schedule 'full' and the header asks for tier 'economy'; they differ",
    ):
        find({"schedule": "full"}, ("economy",))


def test_bounds_of_auto_hold_beside_a_place_that_cannot_name_them() -> None:
    auto = {"budget": "auto", "minimum": 0.5}
    for places in ({}, {"header": ("auto",)}, {"alias": "auto"}):
        assert find(auto, **places).ask == Ask(budget="auto", minimum=0.5)


@pytest.mark.parametrize(
    ("field", "header", "same"),
    [
        ({"schedule": "lossless"}, "lossless", True),  # the tier stands for the schedule
        ({"schedule": "full"}, "1.0", True),
        ({"schedule": "full"}, "full", True),
        ({"schedule": "economy"}, "economy", False),  # a schedule of a tier's name is another thing
        ({"schedule": "fastv-0.25"}, "0.25", False),
        ({"max_flops_fraction": 0.25}, "0.25", False),
        ({"keep": [1.0, 1.0], "rules": []}, "1", False),
    ],
)
def test_names_count_by_what_they_stand_for(field: Any, header: str, same: bool) -> None:
    if same:
        assert find(field, (header,)).by == "body"
    else:
        with pytest.raises(RequestError, match="they differ"):
            find(field, (header,))


def test_a_trace_is_asked_for_beside_any_place() -> None:
    assert find({"trace": True}) == Asked(Ask(budget=0.8), "key-default", False, trace=True)
    assert find({"trace": True}, ("0.4",)) == Asked(Ask(budget=0.4), "header", trace=True)
    assert find({"trace": True, "budget": 0.4}, ("0.4",)).by == "body"


def test_a_floor_is_asked_for_beside_any_place() -> None:
    floor: dict[str, Any] = {"per_image_floor": 0.5}
    assert find(floor) == Asked(Ask(budget=0.8), "key-default", False, per_image_floor=0.5)
    assert find(floor, caller=None).per_image_floor == 0.5
    assert find(floor, details=("low",)).per_image_floor == 0.5
    assert find(floor, ("0.4",)) == Asked(Ask(budget=0.4), "header", per_image_floor=0.5)
    assert find(floor | {"budget": 0.4}, alias="0.4").per_image_floor == 0.5
    assert find({"budget": 0.4}).per_image_floor is None


@pytest.mark.parametrize(
    ("details", "ask"),
    [
        (("low",), Ask(tier="economy")),
        (("low", "low"), Ask(tier="economy")),
        (("auto", "low"), Ask(budget=0.5)),
        (("low", "high", "auto"), Ask(tier="full")),
        (("nosuch", "low"), Ask(tier="economy")),
        (("nosuch",), Ask(budget=0.8)),
        ((), Ask(budget=0.8)),
    ],
)
def test_the_most_demanding_detail_counts(details: tuple[str, ...], ask: Ask) -> None:
    assert find(details=details).ask == ask


def test_detail_means_nothing_where_it_is_not_configured() -> None:
    for detail in ("low", "auto", "high"):
        assert find(details=(detail,), settings=ServerSettings(), caller=None).by == "default"


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        ("0.25", Ask(budget=0.25)),
        (".25", Ask(budget=0.25)),
        ("25e-2", Ask(budget=0.25)),
        ("1", Ask(budget=1.0)),
        ("auto", Ask(budget="auto")),
        ("economy", Ask(tier="economy")),
        ("nan", Ask(tier="nan")),  # a name like any other: no tier is called so
    ],
)
def test_the_short_form(text: str, ask: Ask) -> None:
    assert find(header=(text,)) == Asked(ask, "header")
    assert find(alias=text) == Asked(ask, "model")


REUSES: dict[str, dict[str, Any]] = {
    "body": {"field": {"budget": 0.4, "reuse": True}},
    "body alone": {"field": {"reuse": True}},
    "header of its own": {"reuse": ("true",)},
    "header": {"header": ("0.4+reuse",)},
    "model": {"alias": "0.4+reuse"},
}


@pytest.mark.parametrize("place", REUSES)
def test_reuse_can_be_asked_for_beside_any_way(place: str) -> None:
    asked = find(**REUSES[place])
    assert asked.reuse == Switch(wanted=True, explicit=True)
    assert asked.ask.budget in (0.4, KEY.budget.default)
    for beside in (
        {"field": {"max_flops_fraction": 0.5}},
        {"field": {"budget": "auto", "minimum": 0.3}},
        {"field": {"keep": [1.0, 1.0], "rules": []}},
        {"alias": "economy"},
        {"details": ("low",)},
    ):
        assert find(**beside, reuse=("true",)).reuse == Switch(wanted=True, explicit=True)
        assert find(**beside, reuse=("false",)).reuse == Switch(wanted=False, explicit=True)


@pytest.mark.parametrize("text", ["economy", "auto", "full", ".5", "25e-2"])
def test_the_suffix_is_no_part_of_the_wish(text: str) -> None:
    for places in ({"header": (f"{text}+reuse",)}, {"alias": f"{text}+reuse"}):
        asked = find(**places)
        assert asked.ask == find(alias=text).ask
        assert asked.reuse == Switch(wanted=True, explicit=True)
    assert find({"tier": "economy"}, alias="0.25+reuse").by == "body", "they agree"


@pytest.mark.parametrize("text", ["+reuse", "0.5+reuse+reuse", "0.5+Reuse", "0.5 +reuse", "0.5+"])
def test_what_is_no_suffix_is_refused(text: str) -> None:
    with pytest.raises(InvalidBudget, match=r"may end in \+reuse"):
        find(alias=text)


@given(
    body=st.none() | st.booleans(),
    own=st.none() | st.booleans(),
    header=st.booleans(),
    alias=st.booleans(),
    of_key=st.none() | st.booleans(),
    of_server=st.none() | st.booleans(),
)
def test_what_the_client_says_of_reuse_decides_then_the_key_then_the_server(
    body: bool | None,
    own: bool | None,
    header: bool,
    alias: bool,
    of_key: bool | None,
    of_server: bool | None,
) -> None:
    said = {value for value in (body, own, header or None, alias or None) if value is not None}
    arguments: dict[str, Any] = {
        "field": None if body is None else {"reuse": body},
        "header": ("0.5+reuse" if header else "0.5",),
        "alias": "0.5+reuse" if alias else "0.5",
        "reuse": () if own is None else (str(own).lower(),),
        "caller": key(reuse=of_key),
        "settings": ServerSettings.model_validate({"budget": {"reuse": of_server}}),
    }
    if len(said) > 1:
        with pytest.raises(RequestError, match="asks for reuse .*they differ: leave out all but"):
            find(**arguments)
    elif said:
        assert find(**arguments).reuse == Switch(said.pop(), explicit=True)
    else:
        wanted = of_server if of_key is None else of_key
        assert find(**arguments).reuse == Switch(bool(wanted), explicit=False)


def test_a_contradiction_about_reuse_names_the_places() -> None:
    said = "the body asks for reuse false and the header X-VTR-Budget asks for reuse true"
    with pytest.raises(RequestError, match=said):
        find({"reuse": False}, ("0.5+reuse",))


@pytest.mark.parametrize("values", [("1",), ("True",), ("",), ("true", "true"), ("no",)])
def test_the_header_of_reuse_is_true_or_false(values: tuple[str, ...]) -> None:
    with pytest.raises(
        RequestError, match=r"header X-VTR-Reuse is \[.*\]; it must be true or false"
    ):
        find(reuse=values)


@given(st.text(max_size=40))
def test_any_text_is_a_budget_a_tier_or_refused(text: str) -> None:
    try:
        ask = find(header=(text,)).ask
    except InvalidBudget:
        return
    assert (ask.budget is None) != (ask.tier is None)
    if ask.budget not in (None, "auto"):
        assert 0 < float(ask.budget) <= 1
    if ask.tier is not None:
        assert text == ask.tier
        assert text.isascii()


@pytest.mark.parametrize("text", [text for text in HEADERS if not text.isalpha()])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidBudget, match="header X-VTR-Budget is"):
        find(header=(text,))
    with pytest.raises(InvalidBudget, match="model alias @ is"):
        find(alias=text)


def test_a_repeated_header_is_refused() -> None:
    with pytest.raises(InvalidBudget, match="one decimal number"):
        find(header=("0.5", "0.5"))


NAMES = st.text("ab@/.", min_size=1, max_size=6)


@given(NAMES, st.sets(NAMES, min_size=1, max_size=4), NAMES)
def test_an_alias_is_split_off_exactly_where_the_rest_is_served(
    model: str, served: set[str], wish: str
) -> None:
    names = sorted(served)
    base, found = split_alias(model, names)
    if model in served:
        assert (base, found) == (model, None)
    if found is None:
        assert base == model
    else:
        assert (base in served, f"{base}@{found}") == (True, model)
        assert "@" not in found
    if "@" not in wish and f"{names[0]}@{wish}" not in served:
        assert split_alias(f"{names[0]}@{wish}", names) == (names[0], wish)
    assert split_alias(None, names) == (None, None)


BUDGET = st.none() | st.floats(0.01, 1.0)


@given(BUDGET, BUDGET, BUDGET, BUDGET)
def test_a_key_says_its_own_bounds_and_leaves_the_rest_to_the_server(
    low: float | None, high: float | None, own_low: float | None, own_high: float | None
) -> None:
    if (low or 0) > (high or 1) or (own_low or 0) > (own_high or 1):
        return
    settings = ServerSettings.model_validate({"budget": {"minimum": low, "maximum": high}})
    assert bounds(settings, None) == Bounds(low or 0.0, high or 1.0)
    assert bounds(settings, key()) == bounds(settings, None)
    found = bounds(settings, key(minimum=own_low, maximum=own_high))
    assert found.minimum == (own_low or low or 0.0)
    assert found.maximum == (own_high or high or 1.0)


ADAPT_PLACES: dict[str, dict[str, object]] = {
    "body": {"field": {"budget": 0.4, "adapt": True}},
    "body alone": {"field": {"adapt": True}},
    "header": {"header": ("0.4+adapt",)},
    "model": {"alias": "economy+adapt"},
}


@pytest.mark.parametrize("place", ADAPT_PLACES)
def test_a_schedule_of_its_own_can_be_asked_for_beside_any_way(place: str) -> None:
    asked = find(**ADAPT_PLACES[place])
    assert asked.adapt == Switch(wanted=True, explicit=True)
    assert asked.reuse == Switch()


def test_adapt_is_the_client_s_then_the_key_s_then_the_server_s() -> None:
    server = ServerSettings(budget=BudgetSettings(adapt=True))
    assert find(settings=server).adapt == Switch(wanted=True)
    assert find({"adapt": False}, settings=server).adapt == Switch(wanted=False, explicit=True)


def test_reuse_and_adapt_exclude_each_other() -> None:
    both = ServerSettings(budget=BudgetSettings(adapt=True, reuse=True))
    plain = find(settings=both)
    assert (plain.reuse.wanted, plain.adapt.wanted) == (True, False)
    wished = find({"adapt": True}, settings=both)
    assert (wished.reuse.wanted, wished.adapt.wanted) == (False, True)
    with pytest.raises(RequestError, match="reuse and adapt are both true"):
        find({"adapt": True, "reuse": True})
    with pytest.raises(InvalidBudget, match=r"may end in \+reuse or \+adapt"):
        find(header=("0.4+adapt+reuse",))


@pytest.mark.parametrize(
    ("server", "of_key", "default"),
    [
        ({}, None, 1.0),
        ({"maximum": 0.5}, None, 0.5),
        ({"maximum": 0.5}, {"maximum": 1.0}, 1.0),
        ({"default": 0.4}, {"minimum": 0.75}, 0.75),
        ({"default": 0.4}, {"default": 0.3}, 0.3),
        ({"default": "auto", "maximum": 0.5}, None, "auto"),
    ],
)
def test_what_a_caller_gets_by_default_lies_within_its_bounds(
    server: dict[str, Any], of_key: dict[str, Any] | None, default: Any
) -> None:
    settings = ServerSettings.model_validate({"budget": server, "elastic": {"ttft_seconds": 1.0}})
    key = None
    if of_key is not None:
        key = KeySettings.model_validate({"name": "k", "sha256": "0" * 64, "budget": of_key})
    assert default_budget(settings, key) == default


@pytest.mark.parametrize(
    ("ask", "explicit", "most", "runs_at"),
    [
        (Ask(budget=0.5), False, 1.0, 1.0),
        (Ask(budget="auto"), False, 1.0, 1.0),
        (Ask(budget="auto"), True, 1.0, 1.0),
        (Ask(budget="auto", maximum=0.5), True, 1.0, "auto"),
        (Ask(budget="auto"), True, 0.5, "auto"),
        (Ask(budget=0.5), False, 0.75, 0.5),
        (Ask(budget=0.5), True, 1.0, 0.5),
    ],
)
def test_what_cannot_be_reduced_runs_at_full_where_the_client_leaves_the_budget(
    ask: Ask, explicit: bool, most: float, runs_at: Any
) -> None:
    asked = Asked(ask, "somewhere", explicit)
    found = unreduced(asked, Bounds(0.0, most))
    assert found.ask.budget == runs_at
    assert found.by == "somewhere"
