"""The command line: what ``vtr serve`` becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vtr_vllm import cli, demo
from vtr_vllm.cli import Launch
from vtr_vllm.engine_settings import PLUGIN, SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.own_models import CHECKPOINT, DEMO_SCHEDULES, OWN_MODELS
from vtr_vllm.schedules import ModelGeometry, ScheduleBook


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Collects launches in place of becoming them."""
    launches: list[Launch] = []
    monkeypatch.setattr(cli, "_become", launches.append)
    monkeypatch.setattr(cli, "_check", lambda *_: None)  # what is there: test_preflight.py
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


def test_so_do_modules(launched: list[Launch], tmp_path: Path) -> None:
    cli.main(["serve", "some/model", "--atp", str(tmp_path)])
    config = json.loads(value_of(launched[0], "--additional-config"))
    assert config == {"vtr": {"atp": str(tmp_path.resolve())}}


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


@pytest.mark.parametrize("name", OWN_MODELS)
def test_an_own_model_is_a_local_server_with_a_name(
    name: str, launched: list[Launch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(OWN_MODELS, name, replace(OWN_MODELS[name], checkpoint=tmp_path))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    cli.main(["serve", name, "--port", "8080"])
    (launch,) = launched
    assert launch.arguments[:2] == ("serve", str(tmp_path))
    assert value_of(launch, "--served-model-name") == name
    assert value_of(launch, "--host") == "127.0.0.1"
    assert "--enforce-eager" in launch.arguments
    assert launch.environment["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_the_demo_paths_are_those_of_the_demo_package() -> None:

    assert demo.CHECKPOINT == CHECKPOINT
    assert DEMO_SCHEDULES.parent == CHECKPOINT.parent
    assert demo.SCHEDULES == DEMO_SCHEDULES


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
        (["serve"], "name the model"),
        (["batch", "-i", "a", "-o", "b"], "name the model"),
        (["serve", "--port", "80", "some/model"], "name the model"),
        (["serve", "one", "--model", "other"], "models one and other are named; give one"),
        (["batch", "one", "-i", "a", "-o", "b", "--model=other"], "models one and other"),
        (["batch", "one"], "required: -i/--input-file, -o/--output-file"),
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
    assert str(launch) == "VLLM_PLUGINS=vtr python -P -m vtr_server serve 'a model' --x"
    launch = Launch(("serve", "m", "--api-key", "K"), {})
    assert str(launch) == "python -P -m vtr_server serve m --api-key '***'"


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


@pytest.mark.parametrize("command", [["serve"], ["batch", "-i", "a", "-o", "b"]])
@pytest.mark.parametrize(
    "flags", [["--port", "80"], ["--enforce-eager"], ["--lora-modules", "a=b", "c=d"]]
)
def test_the_model_may_stand_first_or_in_a_flag_anywhere(
    launched: list[Launch], command: list[str], flags: list[str]
) -> None:
    name, *files = command
    for arguments in (
        [name, "some/model", *files, *flags],
        [name, *flags, *files, "--model", "some/model"],
        [name, *files, "--model=some/model", *flags],
        [name, "some/model", "--model", "some/model", *files, *flags],
    ):
        cli.main(arguments)
    assert all(launch == launched[0] for launch in launched)
    assert launched[0].arguments[-len(flags) :] == tuple(flags)
    assert "some/model" in launched[0].arguments


def config(folder: Path, text: str) -> str:
    path = folder / "engine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("spelled", ["served-model-name", "served_model_name"])
def test_a_config_file_wins_over_what_we_would_add(
    launched: list[Launch], tmp_path: Path, spelled: str
) -> None:
    text = f"{spelled}: mine\nhost: 0.0.0.0\nshutdown-timeout: 5\nenforce-eager: false\n"
    path = config(tmp_path, text)
    cli.main(["serve", "demo", f"--config={path}", "--port", "80"])
    (launch,) = launched
    flags = {"--served-model-name", "--host", "--shutdown-timeout", "--enforce-eager"}
    assert flags.isdisjoint(launch.arguments)
    assert launch.arguments[-4:] == ("--config", path, "--port", "80")
    assert value_of(launch, "--worker-cls") == WORKER_CLS


@pytest.mark.parametrize("command", [["serve"], ["batch", "-i", "a", "-o", "b"]])
def test_the_model_may_stand_in_the_config_file(
    launched: list[Launch], tmp_path: Path, command: list[str]
) -> None:
    cli.main([*command, "--config", config(tmp_path, "model: demo")])
    assert str(CHECKPOINT) in launched[0].arguments
    assert value_of(launched[0], "--served-model-name") == "demo"


@pytest.mark.parametrize(
    "given", ['{"other": 1, "vtr": {"bands": 4}}', "\n  other: 1\n  vtr:\n    bands: 4"]
)
def test_an_additional_config_in_the_file_is_kept(
    launched: list[Launch], tmp_path: Path, given: str
) -> None:
    quoted = f"'{given}'" if given.startswith("{") else given
    path = config(tmp_path, f"additional_config: {quoted}")
    cli.main(["serve", "some/model", "--config", path, "--schedules", str(tmp_path)])
    merged = json.loads(value_of(launched[0], "--additional-config"))
    assert merged == {"other": 1, "vtr": {"bands": 4, "schedules": str(tmp_path.resolve())}}


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("model: other", [], "models other and some/model are named"),
        ("schedules: here", [], "holds schedules; give that on the command line"),
        ("settings: here\nconfig: more", [], "holds config, settings"),
        ("additional-config: {}", ["--additional-config", "{}"], "keep one of them"),
        ("additional-config: [1]", [], "must be JSON objects"),
        ("- port", [], "must hold one mapping"),
        ("", [], "must hold one mapping"),
        ("a: [", [], "cannot be read as YAML"),
        ("\0", [], "cannot be read as YAML"),
        (None, [], "cannot be read as YAML"),
    ],
)
def test_a_config_file_that_contradicts_is_refused_by_name(
    launched: list[Launch],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    flags: list[str],
    said: str,
) -> None:
    path = str(tmp_path / "none.yaml") if text is None else config(tmp_path, text)
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "some/model", "--config", path, *flags])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert launched == []


def test_vllm_reads_what_we_made_of_a_config_file(tmp_path: Path) -> None:
    """vLLM puts the file's flags before ours, so what the file says must not be among ours."""
    pytest.importorskip("vllm")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    path = config(tmp_path, "host: 0.0.0.0\nserved-model-name: mine")
    options = cli.argparse.Namespace(
        model="demo",
        config_file=path,
        config={"host": "0.0.0.0", "served-model-name": "mine"},
        additional_config=None,
        schedules=None,
        settings=None,
        atp=None,
    )
    launch = cli.plan_serve(options, ["--port", "80"], {})
    parser = FlexibleArgumentParser()
    serve = parser.add_subparsers(dest="subparser").add_parser("serve")
    serve.add_argument("model_tag", nargs="?")
    for flag in ("--enforce-eager", *(part for part in launch.arguments if part[:2] == "--")):
        if flag not in ("--config", *serve._option_string_actions):
            serve.add_argument(flag, action="store_true" if flag == "--enforce-eager" else "store")
    serve.add_argument("--host")
    serve.add_argument("--served-model-name")
    found = parser.parse_args(list(launch.arguments))
    assert (found.host, found.served_model_name, found.port) == ("0.0.0.0", "mine", "80")
    assert (found.worker_cls, found.model_tag) == (WORKER_CLS, str(CHECKPOINT))
