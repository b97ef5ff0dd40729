"""What all trainings share, in one of ATP's modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.vtr_vllm.training.atp.test_train import asked
from vtr_vllm.errors import CalibrationError, ConfigurationError
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training import loop
from vtr_vllm.training.atp.train import AtpTraining
from vtr_vllm.training.llava import Llava


def test_every_item_comes_once_before_any_comes_again(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    training = AtpTraining(llava, data, asked(heldout=0.0, batch=5), tmp_path)
    seen = []
    for step in range(12):
        training.step = step
        seen += [example.item.id for example in training._batch()]
    for epoch in range(5):
        assert sorted(seen[12 * epoch : 12 * epoch + 12]) == sorted(item.id for item in data.items)
    assert seen[:12] != seen[12:24]


def test_data_that_cannot_be_trained_on_is_refused(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    bare = [dataclasses.replace(item, answers=()) for item in data.items]
    with pytest.raises(CalibrationError, match="no answers"):
        AtpTraining(llava, Dataset(data.path, tuple(bare)), asked(), tmp_path)
    with pytest.raises(CalibrationError, match="no item to train on"):
        AtpTraining(llava, data, asked(heldout=0.9999999), tmp_path)


def test_saving_takes_a_small_part_of_the_time(
    llava: Llava, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 10 s and a save of 100 s: one save each 2000 s, and the last."""
    training = AtpTraining(llava, data, asked(steps=500), tmp_path)
    now, saves = 0.0, list[float]()

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def step() -> None:
        pass_time(10)
        training.step += 1

    def save() -> None:
        pass_time(100)
        saves.append(now)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    monkeypatch.setattr(training, "take_step", step)
    monkeypatch.setattr(training, "save", save)
    monkeypatch.setattr(training, "_report", lambda *_: None)
    assert training.run(print, lambda: False)
    assert saves == [170, 2280, 4390, 5400]


def test_what_has_ended_keeps_its_scores_alone(llava: Llava, data: Dataset, tmp_path: Path) -> None:
    training = AtpTraining(llava, data, asked(), tmp_path)
    stale = tmp_path / ".training.pt.0.tmp"
    stale.write_text("half a state")
    assert training.run(lambda _: None, lambda: False)
    assert not stale.exists()
    size = (tmp_path / "training.pt").stat().st_size
    scores = training.end().scores
    assert (tmp_path / "training.pt").stat().st_size < min(size, 10_000)
    again = AtpTraining(llava, data, asked(), tmp_path)
    assert again.ended
    assert again.scores == scores
    with pytest.raises(ConfigurationError, match="steps 3 and not 4"):
        AtpTraining(llava, data, asked(steps=4), tmp_path)


def test_a_loss_that_is_no_number_ends_training(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    training = AtpTraining(llava, data, asked(), tmp_path)
    training.modules.cut(0).heads.bias.data.fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="lower --learning-rate"):
        training.take_step()
