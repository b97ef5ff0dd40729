"""Training on a tiny random LLaVA, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.model import ReferenceLlava
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import Schedule
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training import cli
from vtr_vllm.training.llava import Llava
from vtr_vllm.training.registers.dropping import DroppingPass
from vtr_vllm.training.registers.options import RegisterOptions
from vtr_vllm.training.registers.train import RegisterTraining

REGISTERS, LAYER = 4, 2
IMAGE = 16


def asked(**values: Any) -> RegisterOptions:
    given = {"model": "tiny", "data": "x", "steps": 3, "batch": 4, "heldout": 0.3}
    return RegisterOptions(**{**given, "registers": REGISTERS, "layer": LAYER, **values})


def trained(folder: Path, data: Dataset, out: Path, **values: Any) -> RegisterTraining:
    """The model is changed, so each training has its own."""
    return RegisterTraining(Llava.load(str(folder)), data, asked(**values), out)


def run(training: RegisterTraining, stop_at: int | None = None) -> Any:
    return training.run(lambda _: None, lambda: training.step == stop_at)


def test_the_answers_are_learned(folder: Path, data: Dataset, tmp_path: Path) -> None:
    training = trained(folder, data, tmp_path, steps=25, learning_rate=0.05, decoder_rate=2e-3)
    tower = [w.clone() for w in training.llava.model.model.vision_tower.parameters()]
    registers = training.registers.detach().clone()
    assert run(training) is not None
    losses = [row["answer"] for row in training.losses]
    assert losses[-1] < losses[0] / 3
    assert not torch.equal(training.registers, registers)
    for before, after in zip(
        tower, training.llava.model.model.vision_tower.parameters(), strict=True
    ):
        assert torch.equal(before, after.to(before.dtype))


def test_a_stopped_training_ends_with_the_same_weights(
    folder: Path, data: Dataset, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"elastic": True, "decoder_rate": 1e-3}
    whole = trained(folder, data, tmp_path / "a", **values)
    left = run(whole)
    assert run(trained(folder, data, tmp_path / "b", **values), stop_at=2) is None
    again = trained(folder, data, tmp_path / "b", **values)
    assert again.step == 2
    assert run(again) == left
    assert again.losses == whole.losses
    for name, tensor in whole.weights().items():
        assert torch.equal(again.weights()[name], tensor), name
    with pytest.raises(ConfigurationError, match="layer 2 and not 3"):
        trained(folder, data, tmp_path / "b", **values, layer=3)


def test_an_elastic_training_draws_every_number(
    folder: Path, data: Dataset, tmp_path: Path
) -> None:
    training = trained(folder, data, tmp_path, elastic=True)
    drawn = set()
    for training.step in range(60):
        drawn.add(training._drawn())
    assert drawn == set(range(1, REGISTERS + 1))
    assert trained(folder, data, tmp_path / "b")._drawn() == REGISTERS


@pytest.mark.parametrize("kept", [REGISTERS, 2])
def test_what_is_written_is_what_was_trained(
    folder: Path, data: Dataset, tmp_path: Path, kept: int
) -> None:
    """The reference, on the files, gives the logits of the training's own pass."""
    training = trained(folder, data, tmp_path, elastic=True, learning_rate=0.05)
    left = run(training)
    assert set(left.scores) == {"n", "full", "registers-4", "registers-2", "registers-1"}
    assert json.loads((tmp_path / "config.json").read_text())["vtr_registers"] == REGISTERS
    schedule = Schedule.load(tmp_path / "schedules" / f"registers-{kept}.json")
    counts = list(schedule.counts(IMAGE + REGISTERS))
    assert counts == [IMAGE + REGISTERS] * LAYER + [kept] * (training.depth - LAYER)

    llava = training.llava
    example = llava.examples(data)[0]
    side = llava.batch([example])
    with torch.no_grad():
        own = DroppingPass(side.rows, REGISTERS, kept, LAYER)
        got = llava.logits(side, own).float()
    (image,) = example.item.load_images()
    want = ReferenceLlava(tmp_path).forward(
        example.prompt, [image], counts, {LAYER: "registers"}, example.answer[:-1]
    )
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def test_the_command(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["registers", "--model", folder, "--data", file, "--out", tmp_path / "out"]
    command = [*map(str, given), "--registers", "2", "--layer", "1", "--steps", "2", "--batch", "4"]
    assert cli.main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "2 registers, an image's own tokens dropped before layer 1 of 6" in shown.err
    assert "a step takes" in shown.out
    assert not (tmp_path / "out").exists()
    assert cli.main(command) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"n", "registers-2", "full"}
    assert (tmp_path / "out" / "schedules" / "registers-2.json").exists()


def test_a_layer_that_is_none(folder: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--layer 6 of a decoder of 6 layers; allowed"):
        trained(folder, data, tmp_path, layer=6)
