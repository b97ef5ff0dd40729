"""Reading the two JSON files of a report."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vtr_vllm.search.report_records import frontier_record, search_record
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.report_data import (
    FRONTIER,
    SEARCH,
    Each,
    Maybe,
    check_frontier,
    checked,
    read_frontier,
    read_search,
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(ANY_JSON, st.sampled_from([SEARCH, FRONTIER]))
def test_no_other_error_than_ours(value: Any, form: Any) -> None:
    with pytest.raises(ConfigurationError):
        checked(value, form, "file")


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_a_value_of_the_form_comes_back(value: dict[str, float]) -> None:
    assert checked({"a": value}, {"a": Each(float), "b": Maybe(int)}, "x") == {
        "a": value,
        "b": None,
    }


@pytest.mark.parametrize(
    ("value", "form", "reason"),
    [
        (True, float, "x must be a finite number, got True"),
        (float("nan"), float, "x must be a finite number"),
        (float("inf"), float, "x must be a finite number"),
        (10**400, float, "x must be a finite number"),
        (1.0, int, "x must be a whole number"),
        (True, int, "x must be a whole number"),
        (1, str, "x must be of type str"),
        (None, str, "x must be of type str"),
        ([1, "a"], [int], r"x\[1\] must be a whole number"),
        ({"a": "b"}, {"a": {"b": int}}, r"x\.a must be an object"),
        ({"b": 1}, {"a": int}, "x must be an object with the key 'a'"),
        ("ab", [str], "x must be a list"),
        ([], Each(int), "x must be an object"),
    ],
)
def test_another_form_is_refused_with_its_place(value: Any, form: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        checked(value, form, "x")


def test_a_real_search_is_read_as_it_is(tmp_path: Path) -> None:
    record = search_record()
    (tmp_path / "search.json").write_text(json.dumps(record | {"more": 1}))
    # A record from before families says nothing of them.
    schedules = [{"family": None} | schedule for schedule in record["schedules"]]
    meta = {"family": None} | record["meta"]
    unknown = {"rules": None, "local_rules": None, "meta": meta, "schedules": schedules}
    assert read_search(tmp_path) == record | unknown


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_a_bad_search_file_is_named_with_the_next_step(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "search.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_search(tmp_path)
    assert str(path) in str(caught.value)
    assert "run a search into this folder" in str(caught.value)


def test_a_frontier_may_be_absent_but_not_malformed(tmp_path: Path) -> None:
    assert read_frontier(tmp_path) is None
    path = tmp_path / "frontier.json"
    path.write_text('{"meta": {}}')
    with pytest.raises(ConfigurationError) as caught:
        read_frontier(tmp_path)
    assert str(path) in str(caught.value)
    assert "compare the schedules" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mean_keep": None}, r"rows\[1\]\.mean_keep must be a number in a reachable row"),
        ({"flops_fraction": None}, r"rows\[1\]\.flops_fraction must be a number"),
        ({"method": "full", "budget": 1.0}, "must be the only row of its method and budget"),
    ],
)
def test_rows_that_contradict_are_refused(change: dict[str, Any], reason: str) -> None:
    record = frontier_record()
    check_frontier(record)
    record["rows"][1].update(change)
    with pytest.raises(ConfigurationError, match=reason):
        check_frontier(record)


def test_a_split_that_meta_lacks_is_refused() -> None:
    record = copy.deepcopy(frontier_record())
    del record["meta"]["splits"]["shifted"]
    with pytest.raises(ConfigurationError, match=r"rows\[0\]\.splits must be about splits"):
        check_frontier(record)
