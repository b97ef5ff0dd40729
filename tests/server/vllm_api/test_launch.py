"""What only vLLM's parser and a model's class tell, refused before a model is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.server.conftest import checkpoint
from vtr_server.vllm_api.launch import check, run_vllm_serve
from vtr_vllm.command_line import LAUNCH_VARIABLE
from vtr_vllm.errors import ConfigurationError, GeometryMismatch
from vtr_vllm.schedules import ModelGeometry, fastv

SHADOWS = ("server", "vtr_server", "vtr_vllm", "vllm", "json", "random", "torch")


def arguments(model: Path | str, **more: Any) -> Namespace:
    """What of a parsed command line is looked at."""
    names = ("hf_overrides", "hf_config_path", "revision", "code_revision", "hf_token")
    return Namespace(
        **dict.fromkeys(names),
        model=str(model),
        trust_remote_code=False,
        config_format="auto",
        additional_config=more,
    )


def test_sizes_that_a_config_leaves_to_the_models_class_are_known(tmp_path: Path) -> None:
    """As llava-1.5-7b-hf does: Transformers' LlamaConfig has them."""
    config = json.loads((checkpoint() / "config.json").read_text())
    del config["text_config"]["intermediate_size"], config["text_config"]["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = tmp_path / "schedules"
    folder.mkdir()
    whole = json.loads((checkpoint() / "config.json").read_text())["text_config"]
    geometry = replace(ModelGeometry.from_config(whole), intermediate_size=11008)  # Llama's
    fastv(geometry, 0.5).save(folder / "a.json")
    check(arguments(tmp_path, vtr={"schedules": str(folder)}))
    fastv(replace(geometry, layers=4), 0.5).save(folder / "a.json")
    with pytest.raises(GeometryMismatch):
        check(arguments(tmp_path, vtr={"schedules": str(folder)}))


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ConfigurationError, ValueError)) as refused:
        check(arguments("some/model-that-nobody-has"))
    assert "some/model-that-nobody-has" in str(refused.value)


def test_the_command_is_said_once_it_is_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LAUNCH_VARIABLE, "python -P -m vtr_server serve MODEL")
    check(arguments(checkpoint()))
    assert capsys.readouterr().err == "vtr: python -P -m vtr_server serve MODEL\n"
    assert LAUNCH_VARIABLE not in os.environ


@pytest.mark.parametrize("flags", [["--nosuch"], ["--port", "many"]], ids=str)
def test_a_flag_that_vllm_does_not_know_is_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_vllm_serve(["serve", str(checkpoint()), *flags])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vtr serve: ")
    assert flags[-1] in line


def test_what_lies_where_the_user_stands_is_not_imported(tmp_path: Path) -> None:
    """The real command, as far as an unknown flag: vLLM and all of ours are imported by then."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    vtr = Path(sys.executable).with_name("vtr")
    command = [str(vtr)] if vtr.exists() else [sys.executable, "-P", "-m", "vtr_vllm.cli"]
    run = subprocess.run(
        [*command, "serve", str(checkpoint()), "--port", "0", "--nosuch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 2, run.stderr
    assert "wrong" not in run.stderr + run.stdout
    assert run.stderr.splitlines()[-1].startswith("vtr serve: unrecognized arguments: --nosuch")
    assert "usage" not in run.stderr
    assert "EngineCore" not in run.stderr + run.stdout, "nothing was loaded"
