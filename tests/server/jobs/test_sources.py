"""Which files, models and servers a job may name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.engine.arg_utils import EngineArgs

from vtr_server.jobs.protocol import JobSpec
from vtr_server.jobs.sources import ENGINE_ARGS, MEMORY, SETTINGS, Sources
from vtr_vllm.errors import RequestError
from vtr_vllm.search import cli


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
    (found,) = (each for each in arguments if each.startswith(f"{flag}="))
    return found.partition("=")[2]


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
    with pytest.raises(RequestError, match="is not allowed; allowed are demo, photo, org/model"):
        sources.arguments(spec(model=given))


def test_without_a_model_folder_no_path_is_a_model(sources: Sources) -> None:
    with pytest.raises(RequestError, match="is not allowed"):
        Sources(sources.data_root).arguments(spec(model=str(sources.model_root)))


def test_only_listed_servers(sources: Sources) -> None:
    for named in ("http://a:1", "http://a:1/"):
        assert value_of("--servers", sources.arguments(spec(servers=[named]))) == "http://a:1"
    with pytest.raises(RequestError, match="http://b:1.* can be allowed with --servers"):
        sources.arguments(spec(servers=["http://a:1", "http://b:1"]))


def test_what_is_left_out_stays_out(sources: Sources) -> None:
    data = str(sources.data_root / "items.jsonl")
    assert sources.arguments(spec()) == [
        *("g-search", "--model=demo", f"--data={data}", "--budgets=0.5")
    ]


@pytest.mark.parametrize("name", sorted(ENGINE_ARGS))
def test_sizes_and_formats_of_an_engine_may_be_set(sources: Sources, name: str) -> None:
    arguments = sources.arguments(spec(engine_args={name: 1}))
    assert json.loads(value_of("--engine-args", arguments)) == {name: 1}
    assert name in {field.name for field in dataclasses.fields(EngineArgs)}


@pytest.mark.parametrize(
    "name", ["worker_cls", "trust_remote_code", "model", "hf_overrides", "download_dir", "nosuch"]
)
def test_nothing_else_of_an_engine(sources: Sources, name: str) -> None:
    """What names code, files or hosts."""
    with pytest.raises(RequestError, match=f"{name}.* may not be set by a job; .*max_model_len"):
        sources.arguments(spec(engine_args={"dtype": "float16", name: "x"}))


def test_an_engine_beside_a_serving_one_takes_its_share(sources: Sources) -> None:
    own = replace(sources, memory_share=0.3, names=SETTINGS)

    def share(**engine_args: object) -> object:
        arguments = own.arguments(spec(engine_args=engine_args))
        return json.loads(value_of("--engine-args", arguments))[MEMORY]

    assert share() == 0.3
    assert share(dtype="float16") == 0.3
    assert share(**{MEMORY: 0.2}) == 0.2
    for greedy in ({MEMORY: 0.31}, {"kv_cache_memory_bytes": 1 << 40}):
        with pytest.raises(RequestError, match="more than 0.3 of a device's memory"):
            share(**greedy)
    for odd in ("much", True, None):
        with pytest.raises(RequestError, match="give a number in"):
            share(**{MEMORY: odd})
    with pytest.raises(RequestError, match=r"allowed with servers in \[jobs\]"):
        own.arguments(spec(servers=["http://b:1"]))


def test_engines_that_share_a_memory_fit_into_it_together(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(sources, memory_share=0.3, workers=1, names=SETTINGS)
    monkeypatch.setattr("vtr_server.jobs.sources._has_gpu", lambda: False)
    own.arguments(spec(engines=3))
    with pytest.raises(RequestError, match="engines is 4, .* no GPU is visible"):
        own.arguments(spec(engines=4))
    with pytest.raises(RequestError, match="engines is 2, and 2 jobs"):
        replace(own, workers=2).arguments(spec(engines=2))
    monkeypatch.setattr("vtr_server.jobs.sources._has_gpu", lambda: True)
    own.arguments(spec(engines=4))


def test_without_engines_all_jobs_run_on_the_servers(sources: Sources) -> None:
    served = replace(sources, servers=("http://a:1/", "http://b:1"), engines=False, names=SETTINGS)
    assert value_of("--servers", served.arguments(spec())) == "http://a:1,http://b:1"
    chosen = served.arguments(spec(servers=["http://b:1"]))
    assert value_of("--servers", chosen) == "http://b:1"
    for own in ({"engines": 2}, {"engine_args": {"dtype": "float16"}}):
        with pytest.raises(
            RequestError, match=r"leave it out, or have memory_share in \[jobs\] set"
        ):
            served.arguments(spec(**own))


@pytest.mark.parametrize("left_out", [True, False])
def test_a_search_reads_what_a_job_asks(sources: Sources, left_out: bool) -> None:
    asked: dict[str, object] = {"heldout": "sub/-more.jsonl", "max_minutes": 1.5, "seed": 7}
    job = spec(**({} if left_out else asked))
    read = cli.parse([*sources.arguments(job), "--out", "out"]).asked
    names = ("kind", "budgets", "max_minutes", "seed", "items", "trials", "objective")
    assert [getattr(read, name) for name in names] == [getattr(job, name) for name in names]


_TREE = Path(__file__).parent


@given(st.lists(st.sampled_from(["..", ".", "jobs", "server", "conftest.py", "x"]), max_size=6))
def test_no_chain_of_names_leads_out(parts: list[str]) -> None:
    path = "/".join(["./", *parts])
    try:
        arguments = Sources(_TREE).arguments(spec(data=path))
    except RequestError:
        return
    assert Path(value_of("--data", arguments)).is_relative_to(_TREE)
