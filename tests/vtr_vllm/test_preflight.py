"""A start that cannot succeed: one line, status 2, and nothing loaded. The real command is run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.own_models import CHECKPOINT, DEMO_SCHEDULES
from vtr_vllm.preflight import check_address, known_geometry
from vtr_vllm.schedules import ModelGeometry, explicit, fastv

PROGRAM = """
import contextlib, io, json, sys
from vtr_vllm import cli
said = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            status = cli.main(arguments)
        except SystemExit as ended:
            status = ended.code
    loaded = sorted({"torch", "vllm", "transformers"} & set(sys.modules))
    said.append([status, error.getvalue(), loaded])
json.dump(said, sys.stdout)
"""
"""One process for many commands: the first library that one of them loads fails it."""

GEOMETRY = ModelGeometry.from_config(
    json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
)
KEYS = '[[keys]]\nname = "a"\nsha256 = "{}"\n'


def refused(commands: Iterable[Sequence[str]], cwd: Path, **environment: str) -> list[str]:
    """The one line that each command says; it ends with status 2 and has loaded no library."""
    environ = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HOME")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([list(command) for command in commands]),
        cwd=cwd,
        env=environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    lines = []
    for status, error, loaded in json.loads(run.stdout):
        assert (status, loaded) == (2, []), error
        [line] = error.splitlines()
        lines.append(line)
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything that can be wrong."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "good").mkdir()
    fastv(GEOMETRY, 0.5).save(tmp_path / "good" / "a.json")
    (tmp_path / "other").mkdir()
    fastv(replace(GEOMETRY, layers=8), 0.5).save(tmp_path / "other" / "a.json")
    (tmp_path / "mixed").mkdir()
    for name in ("good", "other"):
        shutil.copy(tmp_path / name / "a.json", tmp_path / "mixed" / f"{name}.json")
    modules(tmp_path / "modules", replace(GEOMETRY, layers=8))
    modules(tmp_path / "adapted", GEOMETRY, lora=8)
    modules(tmp_path / "weightless", GEOMETRY)
    (tmp_path / "weightless" / "atp.safetensors").unlink()
    (tmp_path / "judged").mkdir()
    explicit(GEOMETRY, (1.0,) * 3 + (0.5,) * 9, ["atp"]).save(tmp_path / "judged" / "a.json")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.json").write_text("{")
    (tmp_path / "grpc.yaml").write_text("grpc: true\n")
    (tmp_path / "typo.toml").write_text("[budgit]\n")
    (tmp_path / "broken.toml").write_text("[budget\n")
    (tmp_path / "key.toml").write_text(KEYS.format("secret"))
    (tmp_path / "jobs.toml").write_text("[jobs]\nmemory_share = 0.3\n")
    (tmp_path / "text.model").mkdir()
    (tmp_path / "text.model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return tmp_path


def modules(path: Path, geometry: ModelGeometry, **other: object) -> None:
    """What ``vtr train atp`` leaves, as far as it is looked at without torch."""
    names = ("target", "lora", "data", "options", "losses", "scores", "shape")
    facts = {"schema_version": 1, "checkpoint": "c0ffee", "fingerprint": geometry.fingerprint}
    facts |= {"n_min": 1}
    facts |= {"geometry": geometry.to_dict(), "grid": [12, 12], "layers": [2, 5]}
    path.mkdir()
    (path / "atp.json").write_text(json.dumps(dict.fromkeys(names) | facts | other))
    (path / "atp.safetensors").touch()


CASES = {
    "a model folder that is not there": (
        ["./models/none"],
        "model folder ./models/none is not there",
    ),
    "no model folder at all": (["/no/such/model"], "model folder /no/such/model is not there"),
    "a folder without a model": (["empty"], "empty has no config.json or params.json"),
    "a model of text": (["text.model"], "is a LlamaForCausalLM, which VTR cannot reduce"),
    "no such folder of schedules": (["demo", "--schedules", "none"], "none is no folder"),
    "an empty folder of schedules": (["demo", "--schedules", "empty"], "empty has no schedule"),
    "schedules of another model": (["demo", "--schedules", "other"], "made for 8L-"),
    "schedules of two models": (["demo", "--schedules", "mixed"], "other.json"),
    "a broken schedule": (["demo", "--schedules", "broken"], "broken/a.json"),
    "modules that are not there": (["demo", "--atp", "empty"], "empty/atp.json cannot be read"),
    "modules of another model": (["demo", "--atp", "modules"], "was trained for 8L-"),
    "modules without weights": (["demo", "--atp", "weightless"], "has no atp.safetensors"),
    "a schedule of modules, and none": (["demo", "--schedules", "judged"], "the server has none"),
    "modules of an adapted model": (["demo", "--atp", "adapted"], "was trained with --lora"),
    "no such settings": (["demo", "--settings", "none.toml"], "none.toml cannot be read"),
    "settings with a typing error": (["demo", "--settings", "typo.toml"], "budgit"),
    "settings that are no TOML": (["demo", "--settings", "broken.toml"], "broken.toml is no TOML"),
    "a key that is no hash": (["demo", "--settings", "key.toml"], "keys.0.sha256"),
    "jobs for everybody": (
        ["demo", "--host", "0.0.0.0", "--settings", "jobs.toml"],
        "[jobs] lets everybody",
    ),
    "a port that is none": (["demo", "--port", "70000"], "--port 70000 is above 65535"),
    "an address of another machine": (["demo", "--host", "192.0.2.1"], "192.0.2.1 is no address"),
    "a front end without plugins": (["demo", "--grpc"], "--grpc starts a front end"),
    "the same in a file": (["demo", "--config", "grpc.yaml"], "--grpc starts a front end"),
    "no model given": (["--port", "80"], "name the model"),
}


def test_serve_refuses_in_one_line(folder: Path) -> None:
    lines = refused([["serve", *arguments] for arguments, _ in CASES.values()], cwd=folder)
    for name, line, (_, said) in zip(CASES, lines, CASES.values(), strict=True):
        assert line.startswith("vtr serve: "), name
        assert said in line, name


def test_the_command_itself_ends_with_that_line(folder: Path) -> None:
    command = [sys.executable, "-m", "vtr_vllm.cli", "serve", "./models/none"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("vtr serve: model folder ./models/none is not there")
    assert run.stderr.count("\n") == 1


def test_a_model_that_may_not_be_fetched_is_refused(folder: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    [line] = refused([["serve", "some/model"]], cwd=folder, **offline)
    assert "some/model is neither a folder nor in the cache" in line


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens, who would share it as vLLM does."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_is_refused(folder: Path, taken: int) -> None:
    (folder / "admin.toml").write_text(f"[admin]\nport = {taken}\n")
    commands = [
        ["serve", "demo", "--port", str(taken)],
        ["serve", "demo", f"--port={taken}"],
        ["serve", "demo", "--port", "0", "--settings", "admin.toml"],
    ]
    first, second, admin = refused(commands, cwd=folder)
    assert f"--port {taken} is in use" in first
    assert second == first
    assert f"[admin] port {taken} is in use" in admin
    with pytest.raises(ConfigurationError, match="is the server's own"):
        check_address(["--port", "8001"], ("127.0.0.1", 8001))


def test_addresses_that_are_given_elsewhere_are_let_be(taken: int) -> None:
    check_address(["--uds", "socket", "--port", str(taken)], None)
    check_address(["--config", "vllm.yaml"], None)
    check_address(["--port", "many"], None)  # vLLM's parser says so
    check_address(["--port", "0"], ("127.0.0.1", 0))


OTHERS = [
    (["batch", "-i", "no", "-o", "out", "--model", "demo"], "-i no: there is no such file"),
    (["batch", "-i", "typo.toml", "-o", "no/out", "--model", "demo"], "no such folder"),
    (["batch", "-i", "typo.toml", "-o", "out", "--model", "./no"], "folder ./no is not there"),
    (["batch", "-i", "typo.toml", "--model", "demo"], "required: -o/--output-file"),
    (["search", "all", "--model", "./no", "--data", "d", "--out", "o"], "folder ./no is not there"),
    (["search", "all", "--model", "demo", "--data", "d", "--out", "o", "--nosuch"], "--nosuch"),
    (["search", "nosuch"], "invalid choice"),
    (["search", "serve", "--host", "0.0.0.0"], "--host 0.0.0.0 is beyond this machine"),
    (["keys", "new", "Not A Name"], "must be 1 to 32 of"),
    (["keys", "old"], "invalid choice"),
    (["settings", "check", "typo.toml"], "budgit"),
    (["settings", "check"], "required: FILE"),
    (["nosuch"], "invalid choice"),
]


def test_the_other_commands_refuse_in_one_line(folder: Path) -> None:
    for (command, said), line in zip(OTHERS, refused([c for c, _ in OTHERS], folder), strict=True):
        assert line.startswith(f"vtr {command[0]}" if command != ["nosuch"] else "vtr:"), line
        assert said in line, command


def test_search_on_servers_needs_no_model_here(folder: Path) -> None:
    """It fails for want of data, not for a model that the servers have."""
    flags = ["--model", "/their/model", "--data", "none", "--out", "out", "--servers", "http://x"]
    command = [sys.executable, "-m", "vtr_vllm.cli", "search", "all", *flags]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1, run.stderr
    assert "/their/model" not in run.stderr


def test_only_a_complete_config_tells_sizes_without_the_models_class(tmp_path: Path) -> None:
    assert known_geometry(str(CHECKPOINT), ()) == GEOMETRY
    assert known_geometry(str(CHECKPOINT), ("--hf-overrides", "{}")) is None
    assert known_geometry("some/model", ()) is None
    config = json.loads((CHECKPOINT / "config.json").read_text())
    del config["text_config"]["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert known_geometry(str(tmp_path), ()) is None


def test_what_is_shipped_passes() -> None:
    from vtr_vllm.preflight import check_model, check_schedules

    check_model(str(CHECKPOINT), (), {})
    check_schedules(DEMO_SCHEDULES, GEOMETRY)
