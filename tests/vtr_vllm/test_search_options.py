"""What a search can be asked, and that its command line and its jobs take the same."""

import argparse
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from vtr_vllm.search import cli
from vtr_vllm.search_options import (
    BackendOptions,
    SearchOptions,
    add_flags,
    flag_of,
    read_flags,
    to_arguments,
)

NEEDED = {"kind": "all", "model": "demo", "data": "items.jsonl"}

# field, as a job names it -> what is taken, what is refused
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "kind": (["g-search", "p-sigmoid", "all"], ["rm", "", "compare"]),
    "model": (["demo", "org/model", "/models/a b", "-x"], ["", "a\x00b", "a\nb", "x" * 1025]),
    "data": (["items.jsonl", "a/b", "-x"], ["", "a\x00b", "x" * 1025]),
    "heldout": (["held.jsonl"], ["", "a\x7fb"]),
    "budgets": (
        [[0.5], [0.5, 0.25], [0.001, 0.999], [i / 33 for i in range(1, 33)]],
        [[0.0], [1.0], [0.5, 1.5], [-0.5], [0.5, 0.5], [i / 34 for i in range(1, 34)], []],
    ),
    "objective": (["accuracy", "label-free"], ["speed", ""]),
    "family": (["guided", "local", "both"], ["blind", "", "Local"]),
    "tolerance": ([0.0, 0.005, 1.0, 1], [-0.1, 1.0000001, 100, float("nan"), float("inf")]),
    "inner": (["bisection", "bayes"], ["random"]),
    "lambda": ([0.0, 0.5, 1.0], [-0.1, 2.0, float("nan")]),
    "trials": ([1, 10_000], [0, -1, 10_001, 1.5]),
    "items": ([1, 1_000_000], [0, -1, 1_000_001, 0.5]),
    "max_minutes": ([0.01, 30, 100_000.0], [0, -1.0, 100_001, float("inf"), float("nan")]),
    "seed": ([0, 2**31 - 1], [-1, 2**31, 2**32 - 1, 0.5]),
    "servers": (
        [["http://a:1"], ["http://a:1", "https://b:2/vtr"]],
        [["a:1"], ["ftp://a"], ["http://"], ["http://a b"], ["http://a:1", "http://a:1/"], [""]],
    ),
    "engines": ([1, 64], [0, 65, -1, 1.5]),
    "max_tokens": ([1, 32_768], [0, 32_769, 2.5]),
    "engine_args": (
        [{}, {"dtype": "float16", "max_model_len": 512}, {"limit_mm_per_prompt": {"image": 1}}],
        [[1], 3, "x", {"a": float("nan")}, {"a": "x" * 10_000}],
    ),
}


def job(**values: Any) -> SearchOptions | None:
    """What a job over HTTP makes of them; None where it refuses."""
    try:
        return SearchOptions(**(NEEDED | values))
    except ValidationError:
        return None


def command_line(**values: Any) -> SearchOptions | None:
    """What the command line makes of them; None where it refuses."""
    kind, *rest = (NEEDED | values).items()
    flags = [f"--{name.replace('_', '-')}={as_text(value)}" for name, value in rest]
    try:
        options = cli.parse([kind[1], "--out", "out", *flags])
    except SystemExit:
        return None
    found: SearchOptions = options.asked
    return found


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value) if value == [1] else ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def test_every_field_is_in_the_table() -> None:
    names = {field.alias or name for name, field in SearchOptions.model_fields.items()}
    assert set(VALUES) == names


@pytest.mark.parametrize("name", VALUES)
def test_both_ends_take_and_refuse_the_same(name: str) -> None:
    taken, refused = VALUES[name]
    for value in taken:
        asked = job(**{name: value})
        assert asked is not None, value
        assert command_line(**{name: value}) == asked, value
    for value in refused:
        assert job(**{name: value}) is None, value
        assert command_line(**{name: value}) is None, value


def test_both_ends_have_the_same_defaults() -> None:
    assert command_line() == job()
    assert job() == job(**{name: None for name in VALUES if name not in NEEDED})


def test_what_does_not_go_together_is_refused_by_both() -> None:
    for own in ({"engines": 2}, {"engine_args": {"dtype": "float16"}}):
        values = {"servers": ["http://a:1"], **own}
        assert job(**values) is None
        assert command_line(**values) is None


@pytest.mark.parametrize("name", VALUES)
def test_a_jobs_command_line_asks_for_the_same(name: str) -> None:
    for value in VALUES[name][0]:
        asked = SearchOptions(**(NEEDED | {name: value}))
        again = cli.parse([*to_arguments(asked), "--out", "out"]).asked
        assert again == asked
        assert again.model_dump_json() == asked.model_dump_json()


_BUDGETS = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, max_size=8)


@given(_BUDGETS.map(lambda found: list(dict.fromkeys(found))), st.floats(0, 1))
def test_numbers_survive_the_command_line(budgets: list[float], tolerance: float) -> None:
    asked = SearchOptions(**NEEDED, budgets=budgets, tolerance=tolerance)
    assert cli.parse([*to_arguments(asked), "--out", "out"]).asked == asked


def test_only_what_was_given_is_on_the_command_line() -> None:
    asked = SearchOptions(**NEEDED, budgets=[0.5], heldout=None)
    assert to_arguments(asked) == ["all", "--model=demo", "--data=items.jsonl", "--budgets=0.5"]


def test_an_address_loses_its_last_slash() -> None:
    assert SearchOptions(**NEEDED, servers=["http://a:1/"]).servers == ["http://a:1"]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="sead"):
        SearchOptions(**NEEDED, sead=1)


def test_a_flag_tells_range_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, BackendOptions)
    assert "longest answer (default: 32)" in parser.format_help()
    assert read_flags(parser, BackendOptions, parser.parse_args([])) == BackendOptions()
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-tokens", "0"])
    assert (
        "--max-tokens: '0': Input should be greater than or equal to 1" in capsys.readouterr().err
    )


def test_the_name_of_a_flag() -> None:
    assert flag_of(SearchOptions, "max_tokens") == "--max-tokens"
    assert flag_of(SearchOptions, "weight") == "--lambda"


class _Numbers(BaseModel):
    layers: list[int] = Field(default=[], description="whole numbers")


def test_a_list_of_whole_numbers_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, _Numbers)
    given = parser.parse_args(["--layers", "2, 5,9"])
    assert read_flags(parser, _Numbers, given).layers == [2, 5, 9]
    assert "--layers N,N" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--layers", "2,half"])
    assert "give a whole number" in capsys.readouterr().err
