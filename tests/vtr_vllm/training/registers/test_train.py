"""Training on a tiny random LLaVA, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reference.model import ReferenceLlava
from tests.tiny import write_tiny_llava
from tests.vtr_vllm.training.conftest import LAYERS
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import Schedule
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training import cli, llava
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
    ran = training.run(lambda _: None, lambda: training.step == stop_at)
    return training.end() if ran else None


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

    model = training.llava
    example = model.examples(data)[0]
    side = model.batch([example])
    with torch.no_grad():
        own = DroppingPass(side.rows, REGISTERS, kept, LAYER)
        got = model.logits(side, own).float()
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


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in float16, loaded in bfloat16 as on a GPU."""
    path = tmp_path / "halves"
    write_tiny_llava(path, layers=LAYERS, vision_tokens=IMAGE)
    weights = load_file(path / "model.safetensors")
    save_file({name: weight.half() for name, weight in weights.items()}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text()) | {"dtype": "float16"}
    (path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(llava, "_computed_in", lambda: torch.bfloat16)
    return path


def test_in_half_precision_the_decoder_learns_and_all_else_stays(
    halves: Path, data: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    training = trained(halves, data, out, steps=20)
    before = {name: weight.clone() for name, weight in training.weights().items()}
    assert training.llava.model.model.vision_tower.dtype == torch.bfloat16
    assert run(training) is not None
    moved = total = 0
    for name, weight in training.weights().items():
        assert weight.dtype == torch.float32
        if "layers" in name:
            moved, total = moved + int((weight != before[name]).sum()), total + weight.numel()
    assert moved > 0.99 * total
    own, source = (load_file(path / "model.safetensors") for path in (out, halves))
    assert own.keys() - {"registers"} == source.keys()
    for name, weight in source.items():
        assert own[name].dtype == torch.float16
        if "vision_tower" in name or "projector" in name or "lm_head" in name:
            assert torch.equal(own[name], weight), name
    learned = training.weights()["layers.0.mlp.up_proj.weight"]
    ends = (
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.layers.0.mlp.up_proj.weight",
    )
    (written,) = (weight for name, weight in own.items() if name.endswith(ends))
    assert torch.equal(written, learned.half())


def test_adapters_learn_in_float32_and_are_rounded_once(
    halves: Path, data: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `train` is not installed")
    out = tmp_path / "out"
    training = trained(halves, data, out, steps=20, lora=2)
    assert run(training) is not None
    assert {weight.dtype for weight in training.weights().values()} == {torch.float32}
    assert all(weight.any() for weight in training.weights().values())
    own, source = (load_file(path / "model.safetensors") for path in (out, halves))
    changed = [name for name, weight in source.items() if not torch.equal(own[name], weight)]
    assert len(changed) == 7 * LAYERS
    assert all("_proj." in name and "vision_tower" not in name for name in changed)


def test_a_layer_that_is_none(folder: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--layer 6 of a decoder of 6 layers; allowed"):
        trained(folder, data, tmp_path, layer=6)
