"""What the vtr field and the header may say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.protocol import Ask, VTRField, parse_ask, refuse_wire_keys
from tests.server.bad_input import BUDGETS, FIELDS, HEADERS, INLINE, NO_LISTS, XARGS
from vtr_vllm.errors import InvalidBudget, RequestError, ScheduleError, UnknownSchedule


@pytest.mark.parametrize(
    ("field", "header", "ask"),
    [
        (None, [], Ask()),
        ({"budget": 0.25}, [], Ask(budget=0.25)),
        ({"budget": 1}, [], Ask(budget=1.0)),
        ({"budget": 1e-9}, [], Ask(budget=1e-9)),
        ({"budget": 0.25, "schedule": None}, [], Ask(budget=0.25)),
        ({"schedule": "fastv-0.5"}, [], Ask(schedule="fastv-0.5")),
        ({"keep": [1.0, 0.5], "rules": ["last"]}, [], Ask(keep=[1.0, 0.5], rules=["last"])),
        ({"keep": [1], "rules": [], "budget": None}, [], Ask(keep=[1], rules=[])),
        (None, ["0.25"], Ask(budget=0.25)),
        (None, [".25"], Ask(budget=0.25)),
        (None, ["1"], Ask(budget=1.0)),
        (None, ["25e-2"], Ask(budget=0.25)),
    ],
)
def test_what_may_be_asked(field: object, header: list[str], ask: Ask) -> None:
    assert parse_ask(field, header) == ask


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda value: f"{value!r:.20}")
def test_a_budget_outside_the_range_is_named(budget: object) -> None:
    with pytest.raises(InvalidBudget, match=r"not a number in \(0, 1\]") as caught:
        parse_ask({"budget": budget})
    assert len(str(caught.value)) < 400


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_float_is_a_budget_exactly_in_the_range(value: float) -> None:
    if not math.isnan(value) and 0 < value <= 1:
        assert parse_ask({"budget": value}) == Ask(budget=value)
    else:
        with pytest.raises(InvalidBudget):
            parse_ask({"budget": value})


@given(st.text(max_size=40))
def test_header_text_is_a_budget_or_refused(text: str) -> None:
    try:
        ask = parse_ask(None, [text])
    except InvalidBudget:
        return
    assert ask.budget is not None
    assert 0 < ask.budget <= 1


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_no_budget_is_refused(header: str) -> None:
    with pytest.raises(InvalidBudget):
        parse_ask(None, [header])


def test_two_headers_are_refused() -> None:
    with pytest.raises(InvalidBudget, match="one decimal number"):
        parse_ask(None, ["0.5", "0.5"])


def test_header_and_body_are_refused_together_even_when_equal() -> None:
    with pytest.raises(RequestError, match="send one of them"):
        parse_ask({"budget": 0.5}, ["0.5"])


@pytest.mark.parametrize("field", FIELDS, ids=lambda value: f"{value!r:.40}")
def test_any_other_vtr_field_is_refused_with_an_example(field: object) -> None:
    with pytest.raises(RequestError, match='"budget": 0.25'):
        parse_ask(field)


def test_a_misspelt_key_is_named_beside_the_allowed_ones() -> None:
    with pytest.raises(RequestError, match=r"\['budgit'\]; allowed are budget, schedule, keep and"):
        parse_ask({"budgit": 0.5})


@pytest.mark.parametrize("name", ["", "x" * 97, 5, True, ["full"]], ids=lambda v: f"{v!r:.20}")
def test_a_schedule_that_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UnknownSchedule, match="GET /v1/schedules"):
        parse_ask({"schedule": name})


@pytest.mark.parametrize("field", NO_LISTS, ids=lambda value: f"{value!r:.40}")
def test_an_inline_schedule_is_two_lists_of_bounded_length(field: dict[str, object]) -> None:
    with pytest.raises(ScheduleError, match="not a list of at most 1024 entries") as caught:
        parse_ask(field)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", INLINE, ids=lambda value: f"{value!r:.40}")
def test_the_entries_of_the_lists_are_not_judged_here(field: dict[str, list[object]]) -> None:
    assert parse_ask(field) == Ask(keep=field["keep"], rules=field["rules"])


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
    assert set(schema["properties"]) == {"budget", "schedule", "keep", "rules"}
    rates, _ = schema["properties"]["keep"]["anyOf"]
    assert rates["maxItems"] == 1024
    assert rates["items"] == {"type": "number", "minimum": 0, "maximum": 1}
