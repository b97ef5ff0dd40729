import math

import pytest
from hypothesis import given, settings

from tests.vtr_vllm.schedules.strategies import curves, schedules
from vtr_vllm.errors import RequestError
from vtr_vllm.schedules import parse_floor, parse_trace, parse_wire, to_wire

GOOD = {"vtr_keep": [1.0, 1.0, 0.5, 0.5], "vtr_rules": ["last"]}


def test_flat_lists_of_plain_values():
    keep, rules = parse_wire(GOOD, 4)
    assert to_wire(keep, rules) == GOOD


@given(curves(10))
@settings(deadline=None, max_examples=50)
def test_round_trip(curve):
    assert parse_wire(to_wire(*curve), 10) == curve


@given(schedules())
@settings(deadline=None, max_examples=30)
def test_round_trip_of_a_schedule(schedule):
    wire = schedule.wire()
    assert parse_wire(wire, schedule.geometry.layers) == (schedule.keep, schedule.rules)
    assert parse_floor(wire) == schedule.per_image_floor


@pytest.mark.parametrize("extra", [{}, {"kv_transfer_params": {}}, {1: "vtr_keep"}])
def test_a_request_without_a_curve_is_not_ours(extra):
    assert parse_wire(extra, 4) is None


def test_keys_of_others_are_left_alone():
    assert parse_wire(GOOD | {"top_a": 0.2}, 4) == parse_wire(GOOD, 4)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"vtr_keep": "[1,1,1,1]", "vtr_rules": []}, "list of 4 keep rates"),
        ({"vtr_keep": None, "vtr_rules": []}, "list of 4 keep rates"),
        ({"vtr_keep": [1, 1, math.nan, 0], "vtr_rules": ["last"]}, "nan"),
        ({"vtr_keep": [1, 1, 1], "vtr_rules": []}, "4 layers"),
        ({"vtr_keep": [1, 0.5, 0.6, 0], "vtr_rules": ["random"]}, "never rise"),
        ({"vtr_keep": [1, 1, 0.5, 0.5], "vtr_rules": ["lasst"]}, "'lasst' is unknown"),
        ({"vtr_keep": [1, 1, 0.5, 0.5], "vtr_rules": None}, "rules must be a list"),
        ({"vtr_keep": [1, 1, 1, 1]}, "no vtr_rules"),
        ({"vtr_rules": []}, "no vtr_keep"),
        ({"vtr_floor": 0.5}, "no vtr_keep"),
        ({"vtr_budget": 0.5}, "unknown keys .'vtr_budget'."),
        (GOOD | {"vtr_rule": "last"}, "unknown keys .'vtr_rule'."),
    ],
)
def test_malformed_is_refused(extra, reason):
    with pytest.raises(RequestError, match=reason):
        parse_wire(extra, 4)


def test_a_floor_is_written_where_it_is_set():
    assert to_wire(*parse_wire(GOOD, 4), 0.5) == GOOD | {"vtr_floor": 0.5}
    assert parse_floor(GOOD | {"vtr_floor": 0.5}) == 0.5
    assert parse_wire(GOOD | {"vtr_floor": 0.5}, 4) == parse_wire(GOOD, 4)
    assert parse_floor(GOOD) == 0.0


@pytest.mark.parametrize("floor", [-0.1, 1.5, None, "0.5", True, [0.5], math.nan])
def test_a_floor_outside_the_range_is_refused(floor):
    with pytest.raises(RequestError, match=r"extra_args vtr_floor: .* in \[0, 1\]"):
        parse_floor(GOOD | {"vtr_floor": floor})


def test_a_trace_goes_with_a_curve_and_without():
    assert parse_trace(GOOD | {"vtr_trace": "a" * 64}) == "a" * 64
    assert parse_wire(GOOD | {"vtr_trace": "a"}, 4) == parse_wire(GOOD, 4)
    assert parse_wire({"vtr_trace": "a"}, 4) is None
    assert parse_trace(GOOD) is None


@pytest.mark.parametrize("name", ["", "a" * 65, 1, None, True, ["a"]])
def test_a_trace_without_a_short_name_is_refused(name):
    with pytest.raises(RequestError, match="vtr_trace is .* 1 to 64 characters"):
        parse_trace({"vtr_trace": name})
