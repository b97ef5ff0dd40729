"""The command line: what ``vtr serve`` becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vtr_vllm import cli
from vtr_vllm.cli import CHECKPOINT, DEMO_SCHEDULES, PLUGIN, SCHEDULER_CLS, WORKER_CLS, Launch
from vtr_vllm.schedules import ModelGeometry, ScheduleBook


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Collects launches in place of becoming them."""
    launches: list[Launch] = []
    monkeypatch.setattr(cli, "_become", launches.append)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return launches


def value_of(launch: Launch, flag: str) -> str:
    return launch.arguments[launch.arguments.index(flag) + 1]


def test_a_model_gets_the_worker_the_scheduler_and_the_plugin(launched: list[Launch]) -> None:
    cli.main(["serve", "some/model", "--port", "8080", "--enforce-eager"])
    (launch,) = launched
    assert launch.arguments[:2] == ("serve", "some/model")
    assert launch.arguments[-3:] == ("--port", "8080", "--enforce-eager")
    assert value_of(launch, "--worker-cls") == WORKER_CLS
    assert value_of(launch, "--scheduler-cls") == SCHEDULER_CLS
    assert "--additional-config" not in launch.arguments
    assert PLUGIN in launch.environment["VLLM_PLUGINS"].split(",")


def test_the_classes_are_the_ones_that_the_engine_names() -> None:
    config = pytest.importorskip("vtr_vllm.engine.common.config")
    assert (WORKER_CLS, SCHEDULER_CLS) == (config.WORKER_CLS, config.SCHEDULER_CLS)


@pytest.mark.parametrize("flag", ["--worker-cls", "--worker_cls"])
def test_a_flag_that_the_user_gives_is_not_given_twice(launched: list[Launch], flag: str) -> None:
    cli.main(["serve", "some/model", flag, "mine.Worker"])
    assert launched[0].arguments.count("--worker-cls") == (flag == "--worker-cls")
    assert WORKER_CLS not in launched[0].arguments


@pytest.mark.parametrize(
    ("given", "names"),
    [("other", ["other", "vtr"]), ("vtr,other", ["vtr", "other"]), ("", ["vtr"])],
)
def test_plugins_of_the_user_stay(
    launched: list[Launch], monkeypatch: pytest.MonkeyPatch, given: str, names: list[str]
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", given)
    cli.main(["serve", "some/model"])
    assert launched[0].environment["VLLM_PLUGINS"].split(",") == names


def test_without_vllm_plugins_all_that_would_load_still_loads(launched: list[Launch]) -> None:
    from importlib.metadata import entry_points

    cli.main(["serve", "some/model"])
    names = launched[0].environment["VLLM_PLUGINS"].split(",")
    assert {e.name for e in entry_points(group="vllm.general_plugins")} <= set(names)


def test_schedules_travel_in_the_additional_config(launched: list[Launch], tmp_path: Path) -> None:
    cli.main(["serve", "some/model", "--schedules", str(tmp_path)])
    config = json.loads(value_of(launched[0], "--additional-config"))
    assert config == {"vtr": {"schedules": str(tmp_path.resolve())}}


@pytest.mark.parametrize("joined", [False, True])
def test_an_additional_config_of_the_user_is_kept(
    launched: list[Launch], tmp_path: Path, joined: bool
) -> None:
    given = json.dumps({"other": 1, "vtr": {"bands": 4}})
    flags = [f"--additional-config={given}"] if joined else ["--additional-config", given]
    cli.main(["serve", "some/model", *flags, "--schedules", str(tmp_path)])
    config = json.loads(value_of(launched[0], "--additional-config"))
    assert config == {"other": 1, "vtr": {"bands": 4, "schedules": str(tmp_path.resolve())}}
    assert sum(part.startswith("--additional-config") for part in launched[0].arguments) == 1


def test_the_demo_is_a_local_server_with_a_name(
    launched: list[Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "CHECKPOINT", tmp_path)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    cli.main(["serve", "demo", "--port", "8080"])
    (launch,) = launched
    assert launch.arguments[:2] == ("serve", str(tmp_path))
    assert value_of(launch, "--served-model-name") == "demo"
    assert value_of(launch, "--host") == "127.0.0.1"
    assert "--enforce-eager" in launch.arguments
    assert launch.environment["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_the_demo_paths_are_those_of_the_demo_package() -> None:
    from vtr_vllm import demo

    assert demo.CHECKPOINT == CHECKPOINT
    assert DEMO_SCHEDULES.parent == CHECKPOINT.parent


def test_the_packaged_schedules_are_for_the_packaged_model() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    book = ScheduleBook.from_folder(ModelGeometry.from_config(config), DEMO_SCHEDULES)
    for budget in (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125):
        selection = book.for_budget(budget)
        assert selection.source == "searched"
        scores = selection.schedule.provenance["scores"]
        assert isinstance(scores, dict)
        assert 0 < scores["low"] <= scores["accuracy"] <= scores["high"] <= 1
    assert book.for_budget(0.3).source == "interpolated"
    assert {"g-search", "g-search-blind", "lossless"} <= set(book.names())


def test_search_and_its_service_have_command_lines_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, said in (
        (["search", "--help"], "g-search"),
        (["search", "serve", "--help"], "--publish"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "give MODEL first"),
        (["serve", "--port", "80", "some/model"], "give MODEL first"),
        (["serve", "some/model", "--schedules", "nosuch"], "is no folder"),
        (["serve", "some/model", "--additional-config", "{"], "is no JSON"),
        (["serve", "some/model", "--additional-config", "[]"], "must be JSON objects"),
        (["serve", "some/model", "--additional-config", '{"vtr": 1}'], "must be JSON objects"),
        (["nosuch"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
def test_what_cannot_be_served_is_said(
    launched: list[Launch], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert launched == []


def test_help_by_section_is_vllms(launched: list[Launch]) -> None:
    with pytest.raises(SystemExit):  # the launch is only recorded here, so parsing goes on
        cli.main(["serve", "--help=all"])
    assert launched == [Launch(("serve", "--help=all"), {})]


def test_help_loads_neither_vllm_nor_torch() -> None:
    program = (
        "import sys; from vtr_vllm import cli\n"
        "try: cli.main(['serve', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "MODEL" in run.stdout
    assert run.stdout.endswith("[]\n")


def test_what_is_run_is_printed_as_a_command() -> None:
    launch = Launch(("serve", "a model", "--x"), {"VLLM_PLUGINS": "vtr"})
    assert str(launch) == "VLLM_PLUGINS=vtr python -m vtr_server serve 'a model' --x"


def test_a_batch_gets_the_same_engine(launched: list[Launch], tmp_path: Path) -> None:
    files = ["-i", "in.jsonl", "-o", "out.jsonl"]
    cli.main(["batch", *files, "--model", "demo", "--schedules", str(tmp_path), "--seed", "1"])
    (launch,) = launched
    assert launch.arguments[:7] == ("batch", *files, "--model", str(CHECKPOINT))
    assert launch.arguments[-2:] == ("--seed", "1")
    assert value_of(launch, "--worker-cls") == WORKER_CLS
    assert value_of(launch, "--scheduler-cls") == SCHEDULER_CLS
    assert json.loads(value_of(launch, "--additional-config"))["vtr"]["schedules"] == str(tmp_path)
    assert PLUGIN in launch.environment["VLLM_PLUGINS"].split(",")
