"""Reading the two JSON files of a report."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.vtr_vllm.search.report_records import frontier_record, search_record
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.report_data import (
    Frontier,
    read_frontier,
    read_search,
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(ANY_JSON, st.sampled_from(["search.json", "frontier.json"]))
def test_no_other_error_than_ours(
    tmp_path_factory: pytest.TempPathFactory, value: Any, name: str
) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(ConfigurationError):
        (read_search if name == "search.json" else read_frontier)(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"budget": True}, r"budget: Input should be a valid number; got True"),
        ({"budget": float("nan")}, r"budget: Input should be a finite number; got nan"),
        ({"budget": float("-inf")}, "budget: Input should be a finite number"),
        ({"budget": 10**400}, "budget: Input should be"),
        ({"order": 10**301}, "order: Input should be less than 1000"),
        ({"order": 1.0}, "order: Input should be a valid integer; got 1.0"),
        ({"order": True}, "order: Input should be a valid integer"),
        ({"search": None}, "search: Input should be a valid string; got None"),
        ({"parameters": []}, r"parameters: Input should be an object; got \[\]"),
    ],
)
def test_another_form_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    record = search_record()
    record["trials"][1] |= change
    path = tmp_path / "search.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match=rf"{path}: trials\.1\.{reason}.*; run a search"):
        read_search(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(json.dumps(search_record() | {"cost": [{}]}))
    with pytest.raises(ConfigurationError, match=r"cost\.0\.stage: Field required"):
        read_search(tmp_path)


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
        ({"mean_keep": None}, r"rows\.1 is reachable: mean_keep .* got None and"),
        ({"flops_fraction": None}, r"rows\.1 is reachable: .* flops_fraction must be numbers"),
        ({"method": "full", "budget": 1.0}, "must be the only row of its method and budget"),
    ],
)
def test_rows_that_contradict_are_refused(change: dict[str, Any], reason: str) -> None:
    record = frontier_record()
    Frontier.model_validate(record)
    record["rows"][1].update(change)
    with pytest.raises(ValidationError, match=reason):
        Frontier.model_validate(record)


def test_a_split_that_meta_lacks_is_refused() -> None:
    record = copy.deepcopy(frontier_record())
    del record["meta"]["splits"]["shifted"]
    with pytest.raises(ValidationError, match=r"rows\.0\.splits must be among meta's"):
        Frontier.model_validate(record)
