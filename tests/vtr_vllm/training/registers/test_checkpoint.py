from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.tiny import tiny_llava
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.training.registers import checkpoint
from vtr_vllm.training.registers.checkpoint import halvings, schedules

GEOMETRY = ModelGeometry(32, 4096, 11008, 32, 32, 128)


def test_the_papers_setting():
    """576 tokens and 8 registers, dropped before layer 3 of 32: .1076 of the tokens on the mean."""
    (found,) = schedules(GEOMETRY, 576, 8, 3, [8])
    assert found.name == "registers-8"
    assert found.is_local
    assert found.budget == found.mean_keep
    counts = found.counts(584)
    assert counts == (584,) * 3 + (8,) * 29
    assert sum(counts) / (32 * 576) == pytest.approx(0.1076, abs=1e-4)


def written(folder: Path, **values: Any) -> set[str]:
    """Names in ``folder`` behind a training that ended there."""
    source = tiny_llava(layers=6, vision_tokens=16)
    model = LlavaForConditionalGeneration.from_pretrained(source)
    count = values.pop("registers", 4)
    found = schedules(GEOMETRY, 16, count, 3, [count])
    checkpoint.write(
        model, AutoProcessor.from_pretrained(source), torch.zeros(4, 128), folder, found
    )
    return {path.name for path in folder.iterdir()}


def test_what_is_not_the_trainings_stays(tmp_path: Path) -> None:
    there = tmp_path / "schedules"
    there.mkdir()
    for name in ("mine.json", "registers-9.json"):
        (there / name).write_text("{}")
    (tmp_path / ".unfinished-0").mkdir()
    names = written(tmp_path)
    assert {"config.json", "model.safetensors", "chat_template.jinja", "schedules"} <= names
    assert not any(name.startswith(".") for name in names)
    assert {path.name for path in there.iterdir()} == {"mine.json", "registers-4.json"}


def test_a_write_that_fails_leaves_no_configuration_of_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    move = Path.replace

    def failing(path: Path, target: Path) -> Path:
        if target.name == "model.safetensors" and target.parent == tmp_path:
            raise OSError("no room")
        return move(path, target)

    monkeypatch.setattr(checkpoint, "_write", lambda *_: pytest.fail("out of room"))
    with pytest.raises(BaseException, match="out of room"):
        written(tmp_path)
    assert (tmp_path / "config.json").exists()  # the old one, with its own weights
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no room"):
        written(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".unfinished-*"))


def test_elastic_ones_halve():
    found = schedules(GEOMETRY, 576, 12, 3, halvings(12))
    assert [schedule.counts(588)[-1] for schedule in found] == [12, 6, 3, 1]
