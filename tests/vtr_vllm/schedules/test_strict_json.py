import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.errors import ScheduleError
from vtr_vllm.schedules.strict_json import MAX_JSON_BYTES, check_keys, copy_object, read_object


def test_reads_an_object():
    assert read_object('{"a": [1, 2.5, null, true, "x"]}') == {"a": [1, 2.5, None, True, "x"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ('{"a": 1', "not valid JSON"),
        ("[]", "a JSON object at the top"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ('{"a": 1, "a": 2}', "repeats the key"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": ' + "[" * 200_000, "not valid JSON"),
        ('{"a": "' + "x" * MAX_JSON_BYTES + '"}', "larger than 1048576 bytes"),
        ('{"a": "' + "\u00e9" * (MAX_JSON_BYTES // 2) + '"}', "larger than 1048576 bytes"),
    ],
)
def test_refuses_with_a_reason(text, reason):
    with pytest.raises(ScheduleError, match=reason):
        read_object(text)


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn\\u \ud800\x00'))
@settings(deadline=None, max_examples=100)
def test_no_text_gives_another_exception(text):
    with contextlib.suppress(ScheduleError):
        assert isinstance(read_object(text), dict)


def test_copies_deep_and_turns_tuples_into_lists():
    inner = {"hashes": ("a", "b")}
    copied = copy_object({"data": inner, "seed": 7}, "provenance")
    inner["hashes"] = ()
    assert copied == {"data": {"hashes": ["a", "b"]}, "seed": 7}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "provenance must be an object"),
        ([1], "provenance must be an object"),
        ({"a": [0.5, math.nan]}, r"provenance\.a\[1\] holds nan"),
        ({"a": {"b": math.inf}}, r"provenance\.a\.b holds inf"),
        ({"a": {1, 2}}, r"provenance\.a holds {1, 2}"),
        ({"a": {1: 2}}, r"provenance\.a has the key 1"),
        ({2: 1}, "provenance has the key 2"),
    ],
)
def test_copies_only_what_json_carries(value, reason):
    with pytest.raises(ScheduleError, match=reason):
        copy_object(value, "provenance")


def test_a_cycle_is_refused():
    value: dict = {}
    value["self"] = value
    with pytest.raises(ScheduleError, match="nested too deep"):
        copy_object(value, "provenance")


def test_keys_are_named():
    check_keys({"a": 1, "b": 2}, ["b", "a"], "thing")
    with pytest.raises(ScheduleError, match=r"thing: missing b and unknown \['c'\]; .* a, b$"):
        check_keys({"a": 1, "c": 2}, ["a", "b"], "thing")
