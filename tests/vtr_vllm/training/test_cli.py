"""The command: dry run, a stop by signal, going on, scoring."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vtr_vllm import cli as vtr
from vtr_vllm.schedules import ScheduleBook
from vtr_vllm.search.session import lock
from vtr_vllm.training import cli
from vtr_vllm.training.atp.train import AtpTraining
from vtr_vllm.training.llava import Llava


def arguments(folder: Path, file: Path, out: Path, *more: str) -> list[str]:
    given = ["atp", "--model", folder, "--data", file, "--out", out, "--target", "0.5"]
    return [*map(str, given), "--steps", "3", "--batch", "4", "--heldout", "0.3", *more]


def test_from_dry_run_to_score(
    folder: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    assert vtr.main(["train", *arguments(folder, file, out, "--dry-run")]) == 0
    shown = capsys.readouterr()
    assert "a step takes" in shown.out
    assert "modules before layers 1, 3, 4 of 6, target 0.5" in shown.err
    assert not out.exists()

    step = AtpTraining.take_step

    def stopped(self: AtpTraining) -> Any:
        if self.step == 1 and not (out / "training.pt").exists():
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(AtpTraining, "take_step", stopped)
    assert cli.main(arguments(folder, file, out)) == 128 + signal.SIGTERM
    assert "stopped at step 2; the same command goes on" in capsys.readouterr().err
    assert not (out / "atp.json").exists()
    assert cli.main(arguments(folder, file, out)) == 0
    shown = capsys.readouterr()
    assert "goes on from step 2" in shown.err
    scores = json.loads(shown.out)
    assert scores == json.loads((out / "atp.json").read_text())["scores"]

    assert cli.main(arguments(folder, file, out)) == 0
    shown = capsys.readouterr()
    assert f"has come to its end; remove {out / 'training.pt'}" in shown.err
    assert json.loads(shown.out) == scores

    items = tmp_path / "items.jsonl"
    asked = ["score", "--model", folder, "--atp", out, "--data", file, "--items", items]
    assert cli.main([*map(str, asked)]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    assert found["n"] == len(lines) == 12
    assert [line["id"] for line in lines] == [f"q{number}" for number in range(12)]
    assert found["mean_keep"] == pytest.approx(sum(line["keep"] for line in lines) / 12)


def test_trained_modules_become_schedules_of_the_model(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, schedules = tmp_path / "atp", tmp_path / "schedules"
    assert cli.main(arguments(folder, file, out, "--layers", "2,4")) == 0
    asked = ["distil", "--model", folder, "--atp", out, "--data", file]
    asked += ["--members", "2", "--out", schedules]
    capsys.readouterr()
    assert cli.main([*map(str, asked)]) == 0
    geometry = Llava.load(str(folder)).geometry
    book = ScheduleBook.from_folder(geometry, schedules)
    told = capsys.readouterr().out.splitlines()
    made = [book.by_name(line.partition(":")[0]) for line in told]
    assert made
    assert all(schedule.keep[:2] == (1.0, 1.0) for schedule in made)


def test_data_without_answers_is_counted_and_not_scored(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bare, made = tmp_path / "atp", tmp_path / "bare.jsonl", tmp_path / "schedules"
    assert cli.main(arguments(folder, file, out, "--layers", "2,4")) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        del line["answers"], line["metric"]
    bare.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [*map(str, ["--model", folder, "--atp", out, "--data", bare])]
    assert cli.main(["score", *given]) == 1
    assert f"{bare} has no answers, and they are what is scored" in capsys.readouterr().err
    assert cli.main(["distil", *given, "--members", "2", "--out", str(made)]) == 0
    assert list(made.glob("*.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["finish", "score"])
def test_a_signal_outside_of_the_steps_ends_the_command(
    folder: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    command: str,
) -> None:
    def stopped(*_: object) -> None:
        signal.raise_signal(number)
        pytest.fail("went on")

    if command == "finish":
        monkeypatch.setattr(AtpTraining, "finish", stopped)
        given = arguments(folder, file, tmp_path / "out")
    else:
        monkeypatch.setattr(cli, "_outcomes", stopped)
        given = ["score", "--model", str(folder), "--atp", str(tmp_path), "--data", str(file)]
    if number == signal.SIGINT:
        assert cli.main(given) == 128 + number
    else:
        with pytest.raises(SystemExit) as ended:
            cli.main(given)
        assert ended.value.code == 128 + number
    assert "vtr train: stopped" in capsys.readouterr().err


def test_a_full_gpu_is_one_line(
    folder: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: AtpTraining) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(AtpTraining, "take_step", full)
    assert cli.main(arguments(folder, file, tmp_path / "out")) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("does not suffice (CUDA out of memory); lower --batch")
    monkeypatch.setattr(AtpTraining, "take_step", _broken)
    with pytest.raises(RuntimeError, match="another fault"):
        cli.main(arguments(folder, file, tmp_path / "out"))


def _broken(_: AtpTraining) -> None:
    raise RuntimeError("another fault")


def test_the_models_own_folder_is_not_written_to(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert cli.main(arguments(folder, file, link)) == 1
    assert "is the folder of --model" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_folder(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock(tmp_path):
        assert cli.main(arguments(folder, file, tmp_path)) == 1
    assert f"another process writes to {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "0.1"], "--target 0.1 cannot be met"),
        (["--layers", "1,6"], "allowed are 1 to 5"),
        (["--model", "./nowhere/at/all"], "model folder ./nowhere/at/all is not there"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_what_cannot_run_is_one_line(
    folder: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert cli.main(arguments(folder, file, tmp_path, *more)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "2"], "--target"),
        (["--layers", "3,2"], "the layers must rise"),
        (["--layers", "a"], "--layers"),
        (["--mask", "some"], "--mask"),
    ],
)
def test_flags_out_of_range_are_status_2(
    folder: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(arguments(folder, file, tmp_path, *more))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="peft is installed")
def test_lora_without_peft_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(Path("demo"), tmp_path / "nothing", tmp_path, "--lora", "8")
    assert cli.main(given) == 1
    assert "--lora needs the package peft" in capsys.readouterr().err
