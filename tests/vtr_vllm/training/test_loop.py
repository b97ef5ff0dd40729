"""What all trainings share, in one of ATP's modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.vtr_vllm.training.atp.test_train import asked
from vtr_vllm.errors import CalibrationError, ConfigurationError
from vtr_vllm.search.calibration import Dataset
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


def test_a_loss_that_is_no_number_ends_training(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    training = AtpTraining(llava, data, asked(), tmp_path)
    training.modules.cut(0).heads.bias.data.fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="lower --learning-rate"):
        training.take_step()
