"""What the vtr field may say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.bad_input import BUDGETS, FIELDS, INLINE, NO_LISTS, XARGS
from vtr_server.policy.vtr_field import Ask, Read, VTRField, parse_field, refuse_wire_keys
from vtr_vllm.errors import (
    InvalidBudget,
    RequestError,
    ScheduleError,
    UnknownSchedule,
    UnknownTier,
    VTRError,
)


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        (None, None),
        ({"budget": 0.25}, Ask(budget=0.25)),
        ({"budget": 1}, Ask(budget=1.0)),
        ({"budget": 1e-9}, Ask(budget=1e-9)),
        ({"budget": 0.25, "schedule": None}, Ask(budget=0.25)),
        ({"budget": "auto"}, Ask(budget="auto")),
        ({"budget": "auto", "minimum": 0.25}, Ask(budget="auto", minimum=0.25)),
        (
            {"budget": "auto", "minimum": 0.5, "maximum": 0.5},
            Ask(budget="auto", minimum=0.5, maximum=0.5),
        ),
        ({"tier": "economy"}, Ask(tier="economy")),
        ({"schedule": "fastv-0.5"}, Ask(schedule="fastv-0.5")),
        ({"max_flops_fraction": 0.5}, Ask(max_flops_fraction=0.5)),
        ({"keep": [1.0, 0.5], "rules": ["last"]}, Ask(keep=[1.0, 0.5], rules=["last"])),
        ({"keep": [1], "rules": [], "budget": None}, Ask(keep=[1], rules=[])),
    ],
)
def test_what_may_be_asked(field: dict[str, Any] | None, ask: Ask | None) -> None:
    assert parse_field(field) == Read(ask)
    if field is not None:
        assert parse_field(field | {"trace": True}) == Read(ask, trace=True)
        assert parse_field(field | {"per_image_floor": 0.5}) == Read(ask, per_image_floor=0.5)
        assert parse_field(field | {"reuse": False}) == Read(ask, reuse=False)
        assert parse_field(field | {"adapt": True}) == Read(ask, adapt=True)


def test_a_trace_alone_asks_for_no_budget() -> None:
    assert parse_field({"trace": True}) == Read(trace=True)
    with pytest.raises(RequestError, match="exactly one of"):
        parse_field({"trace": False})


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda value: f"{value!r:.20}")
def test_a_budget_outside_the_range_is_named(budget: object) -> None:
    with pytest.raises(InvalidBudget, match=r"not a number in \(0, 1\]") as caught:
        parse_field({"budget": budget})
    assert len(str(caught.value)) < 400


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_float_is_a_budget_exactly_in_the_range(value: float) -> None:
    if not math.isnan(value) and 0 < value <= 1:
        assert parse_field({"budget": value}) == Read(Ask(budget=value))
    else:
        with pytest.raises(InvalidBudget):
            parse_field({"budget": value})


WAYS: dict[str, dict[str, Any]] = {
    "budget": {"budget": 0.5},
    "auto": {"budget": "auto", "maximum": 0.5},
    "tier": {"tier": "economy"},
    "schedule": {"schedule": "full"},
    "max_flops_fraction": {"max_flops_fraction": 0.5},
    "inline": {"keep": [1.0] * 12, "rules": []},
}


@pytest.mark.parametrize(
    ("one", "other"), [(a, b) for a, b in combinations(WAYS, 2) if (a, b) != ("budget", "auto")]
)
def test_two_ways_at_once_are_refused(one: str, other: str) -> None:
    with pytest.raises(RequestError, match="exactly one of"):
        parse_field(WAYS[one] | WAYS[other])


@pytest.mark.parametrize("way", [way for way in WAYS if way != "auto"])
@pytest.mark.parametrize("bound", ["minimum", "maximum"])
def test_only_auto_has_bounds(way: str, bound: str) -> None:
    with pytest.raises(RequestError, match=f'vtr has {bound} 0.5, which bounds budget "auto" only'):
        parse_field(WAYS[way] | {bound: 0.5})


SHARES = st.floats(0, 1, exclude_min=True)


@given(SHARES, SHARES)
def test_bounds_are_in_order(minimum: float, maximum: float) -> None:
    field = {"budget": "auto", "minimum": minimum, "maximum": maximum}
    if minimum <= maximum:
        assert parse_field(field)[0] == Ask(budget="auto", minimum=minimum, maximum=maximum)
    else:
        with pytest.raises(InvalidBudget, match="exchange them"):
            parse_field(field)


@pytest.mark.parametrize("name", ["minimum", "maximum", "max_flops_fraction"])
@pytest.mark.parametrize("share", BUDGETS, ids=lambda value: f"{value!r:.20}")
def test_every_share_has_the_range_of_a_budget(name: str, share: object) -> None:
    field = {name: share} if name == "max_flops_fraction" else {"budget": "auto", name: share}
    with pytest.raises(InvalidBudget, match=rf"^{name} .* not a number in \(0, 1\]"):
        parse_field(field)


@pytest.mark.parametrize("name", ["", "x" * 33, 5, True, ["full"]], ids=lambda v: f"{v!r:.20}")
def test_a_tier_that_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UnknownTier, match="GET /v1/schedules"):
        parse_field({"tier": name})


@pytest.mark.parametrize("switch", ["trace", "reuse"])
@pytest.mark.parametrize("value", ["yes", "true", 1, 0, [], {}])
def test_a_switch_is_true_or_false(switch: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{switch} is .*; it must be true or false"):
        parse_field({"budget": 0.5, switch: value})


@pytest.mark.parametrize("reuse", [True, False])
def test_reuse_alone_asks_for_no_budget(reuse: bool) -> None:
    assert parse_field({"reuse": reuse}) == Read(reuse=reuse)
    assert parse_field({"adapt": reuse}) == Read(adapt=reuse)


@given(st.floats(0, 1) | st.sampled_from([0, 1]))
def test_a_floor_alone_asks_for_no_budget(floor: float) -> None:
    assert parse_field({"per_image_floor": floor}) == Read(per_image_floor=floor)


@pytest.mark.parametrize("floor", [-0.1, 1.1, True, "0.5", math.nan, math.inf, [0.5], {}])
def test_a_floor_outside_the_range_is_named(floor: object) -> None:
    with pytest.raises(RequestError, match=r"^per_image_floor .* not a number in \[0, 1\]; send"):
        parse_field({"budget": 0.5, "per_image_floor": floor})


@contextmanager
def catch(kind: type[VTRError]) -> Iterator[list[VTRError]]:
    """What was raised, where being refused is as good as passing."""
    caught: list[VTRError] = []
    try:
        yield caught
    except kind as err:
        caught.append(err)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@given(JSON | st.dictionaries(st.sampled_from([*VTRField.model_fields, "other"]), JSON))
def test_any_json_is_understood_or_refused_in_few_words(field: object) -> None:
    with catch(VTRError) as refused:
        read = parse_field(field)
    if refused:
        assert refused[0].http_status in (400, 422)
        assert 20 < len(str(refused[0])) < 2000
        return
    ask = read.ask
    ways = [ask.budget, ask.tier, ask.schedule, ask.max_flops_fraction, ask.keep] if ask else []
    assert len(ways) - ways.count(None) == (0 if ask is None else 1)
    assert read != Read() or field is None


@pytest.mark.parametrize("field", FIELDS, ids=lambda value: f"{value!r:.40}")
def test_any_other_vtr_field_is_refused_with_an_example(field: object) -> None:
    with pytest.raises(RequestError, match='"budget": 0.25'):
        parse_field(field)


def test_a_misspelt_key_is_named_beside_the_allowed_ones() -> None:
    with pytest.raises(RequestError, match=r"\['budgit'\]; allowed are budget, tier, schedule, "):
        parse_field({"budgit": 0.5})


@pytest.mark.parametrize("name", ["", "x" * 97, 5, True, ["full"]], ids=lambda v: f"{v!r:.20}")
def test_a_schedule_that_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UnknownSchedule, match="GET /v1/schedules"):
        parse_field({"schedule": name})


@pytest.mark.parametrize("field", NO_LISTS, ids=lambda value: f"{value!r:.40}")
def test_an_inline_schedule_is_two_lists_of_bounded_length(field: dict[str, object]) -> None:
    with pytest.raises(ScheduleError, match="not a list of at most 1024 entries") as caught:
        parse_field(field)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", INLINE, ids=lambda value: f"{value!r:.40}")
def test_the_entries_of_the_lists_are_not_judged_here(field: dict[str, list[object]]) -> None:
    assert parse_field(field) == Read(Ask(keep=field["keep"], rules=field["rules"]))


@pytest.mark.parametrize("xargs", XARGS, ids=str)
def test_wire_keys_cannot_be_smuggled(xargs: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="belong to the server"):
        refuse_wire_keys(xargs)


@pytest.mark.parametrize("xargs", [None, {}, {"other": 1, "vtx_keep": 2}])
def test_other_extra_arguments_pass(xargs: dict[str, object] | None) -> None:
    refuse_wire_keys(xargs)
    assert not any(key.startswith("vtr_") for key in xargs or ())


def test_the_schema_in_the_api_description_forbids_extra_keys() -> None:
    schema = VTRField.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {field.name for field in fields(Ask)} | {
        "trace",
        "per_image_floor",
        "reuse",
        "adapt",
    }
    rates, _ = schema["properties"]["keep"]["anyOf"]
    assert rates["maxItems"] == 1024
    assert rates["items"] == {"type": "number", "minimum": 0, "maximum": 1}
