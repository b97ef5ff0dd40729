"""AtpTraining on a tiny random LLaVA: it learns what it is asked, stops anywhere, goes on the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vtr_vllm.atp.artefact import Artefact
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.atp.options import AtpOptions
from vtr_vllm.training.atp.reference import Reference
from vtr_vllm.training.atp.train import AtpTraining
from vtr_vllm.training.llava import Llava


def asked(**values: Any) -> AtpOptions:
    return AtpOptions(
        **{
            "model": "tiny",
            "data": "x",
            "target": 0.5,
            "steps": 3,
            "batch": 4,
            "heldout": 0.3,
            **values,
        }
    )


def run(training: AtpTraining, stop_at: int | None = None) -> tuple[Artefact | None, list[str]]:
    said: list[str] = []
    ran = training.run(said.append, lambda: training.step == stop_at)
    return training.end() if ran else None, said


def test_three_steps_and_inference(llava: Llava, data: Dataset, tmp_path: Path) -> None:
    training = AtpTraining(llava, data, asked(), tmp_path)
    hashes = [{e.item.image_hash for e in side} for side in (training.training, training.heldout)]
    assert all(hashes)
    assert not hashes[0] & hashes[1]
    artefact, said = run(training)
    assert artefact is not None
    assert [line.split("  ")[0] for line in said] == ["step 1/3", "step 2/3", "step 3/3"]
    facts = Artefact.load(tmp_path).facts.values
    assert facts == artefact.facts.values
    assert [row["step"] for row in facts["losses"]] == [1, 2, 3]
    assert facts["scores"]["n"] == len(training.heldout)
    assert set(facts["scores"]["kinds"]) <= {"What", "And", "How"}
    assert facts["data"]["sha256"] == data.sha256
    answer = Reference(llava, Artefact.load(tmp_path)).answer(data.items[0], max_tokens=2)
    assert len(answer.counts) == 6


def test_a_stopped_training_ends_with_the_same_weights(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    options = asked(learning_rate=0.05)
    whole, _ = run(AtpTraining(llava, data, options, tmp_path / "a"))
    assert run(AtpTraining(llava, data, options, tmp_path / "b"), stop_at=2)[0] is None
    again = AtpTraining(llava, data, options, tmp_path / "b")
    assert again.step == 2
    parts, said = run(again)
    assert len(said) == 1
    assert whole is not None
    assert parts is not None
    assert parts.facts.values["losses"] == whole.facts.values["losses"]
    for name, tensor in whole.modules.state_dict().items():
        assert torch.equal(parts.modules.state_dict()[name], tensor), name
    with pytest.raises(ConfigurationError, match="seed 0 and not 1"):
        AtpTraining(llava, data, asked(learning_rate=0.05, seed=1), tmp_path / "b")


@pytest.mark.parametrize("mask", ["soft", "straight-through"])
def test_the_mean_keep_rate_moves_to_the_target(
    llava: Llava, data: Dataset, tmp_path: Path, mask: str
) -> None:
    options = asked(
        mask=mask,
        steps=40,
        learning_rate=0.1,
        lambda_target=20.0,
        lambda_atp=0.0,
        features="scores",
    )
    training = AtpTraining(llava, data, options, tmp_path)
    before = float(training.take_step()["keep"].detach())
    losses = [training.take_step() for _ in range(39)]
    after = [float(one["keep"].detach()) for one in losses[-5:]]
    assert before > 0.95
    assert abs(sum(after) / 5 - 0.5) < 0.15


def test_the_temperature_rises_from_the_first_to_the_last(
    llava: Llava, data: Dataset, tmp_path: Path
) -> None:
    training = AtpTraining(llava, data, asked(temperature=10.0, final_temperature=40.0), tmp_path)
    found = []
    for training.step in range(3):
        found.append(training._temperature())
    assert found == pytest.approx([10, 20, 40])
