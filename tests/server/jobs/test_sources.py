"""Which files, models and servers a job may name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_server.jobs.protocol import JobSpec
from vtr_server.jobs.sources import Sources
from vtr_vllm.errors import RequestError


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    for name in ("data/sub", "models/tiny", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("data/items.jsonl", "data/sub/-more.jsonl", "elsewhere/secret"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere" / "secret")
    (tmp_path / "data" / "near").symlink_to(tmp_path / "data" / "items.jsonl")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data" / "loop")
    (tmp_path / "models" / "out").symlink_to(tmp_path / "elsewhere")
    return Sources(
        tmp_path / "data", tmp_path / "models", models=("org/model",), servers=("http://a:1",)
    )


def spec(**changes: object) -> JobSpec:
    given = {"kind": "g-search", "model": "demo", "data": "items.jsonl", "budgets": [0.5]}
    return JobSpec.model_validate(given | changes)


def value_of(flag: str, arguments: list[str]) -> str:
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize(
    ("given", "real"),
    [
        ("items.jsonl", "items.jsonl"),
        ("sub/-more.jsonl", "sub/-more.jsonl"),
        ("sub/../items.jsonl", "items.jsonl"),
        ("near", "items.jsonl"),
    ],
)
def test_data_under_the_data_folder(sources: Sources, given: str, real: str) -> None:
    for path in (given, str(sources.data_root / given)):
        for field in ("data", "heldout"):
            arguments = sources.arguments(spec(**{field: path}))
            assert value_of(f"--{field}", arguments) == str(sources.data_root / real)


@pytest.mark.parametrize(
    "given",
    [
        *("../elsewhere/secret", "/etc/passwd", "link", "loop", "sub", ".", "..", "nosuch"),
        *("sub/../../elsewhere/secret", "items.jsonl/x", "~/x", "x" * 1000),
    ],
)
def test_no_other_data(sources: Sources, given: str) -> None:
    for field in ("data", "heldout"):
        with pytest.raises(RequestError, match=f"{field} .* is no file under"):
            sources.arguments(spec(**{field: given}))


def test_the_demo_a_listed_model_and_a_folder_of_models(sources: Sources) -> None:
    assert sources.model_root is not None
    tiny = str(sources.model_root / "tiny")
    for named, real in (("demo", "demo"), ("org/model", "org/model"), ("tiny", tiny)):
        assert value_of("--model", sources.arguments(spec(model=named))) == real


@pytest.mark.parametrize("given", ["org/other", "nosuch", "../elsewhere", "out", "--help", "/etc"])
def test_no_other_model(sources: Sources, given: str) -> None:
    with pytest.raises(RequestError, match="is not allowed; allowed are demo, org/model"):
        sources.arguments(spec(model=given))


def test_without_a_model_folder_no_path_is_a_model(sources: Sources) -> None:
    with pytest.raises(RequestError, match="is not allowed"):
        Sources(sources.data_root).arguments(spec(model=str(sources.model_root)))


def test_only_listed_servers(sources: Sources) -> None:
    assert value_of("--servers", sources.arguments(spec(servers=["http://a:1"]))) == "http://a:1"
    with pytest.raises(RequestError, match="http://b:1.*--servers"):
        sources.arguments(spec(servers=["http://a:1", "http://b:1"]))


def test_what_is_left_out_stays_out(sources: Sources) -> None:
    data = str(sources.data_root / "items.jsonl")
    assert sources.arguments(spec()) == [
        *("g-search", "--model", "demo", "--data", data, "--seed", "0", "--budgets", "0.5")
    ]


_TREE = Path(__file__).parent


@given(st.lists(st.sampled_from(["..", ".", "jobs", "server", "conftest.py", "x"]), max_size=6))
def test_no_chain_of_names_leads_out(parts: list[str]) -> None:
    path = "/".join(["./", *parts])
    try:
        arguments = Sources(_TREE).arguments(spec(data=path))
    except RequestError:
        return
    assert Path(value_of("--data", arguments)).is_relative_to(_TREE)
