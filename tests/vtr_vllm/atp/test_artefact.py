"""What a training leaves is read back exactly, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.vtr_vllm.atp.made import made
from vtr_vllm.atp.artefact import Artefact
from vtr_vllm.atp.facts import FACTS, WEIGHTS
from vtr_vllm.atp.module import grid_scores
from vtr_vllm.errors import ConfigurationError


def test_round_trip(tmp_path: Path) -> None:
    artefact = made(tmp_path)
    found = Artefact.load(tmp_path)
    assert found.facts == artefact.facts
    assert found.modules.layers == (2, 5)
    for name, tensor in artefact.modules.state_dict().items():
        assert torch.equal(found.modules.state_dict()[name], tensor), name


def test_it_is_read_in_float32_where_a_model_of_another_type_is_loaded(tmp_path: Path) -> None:
    expected = made(tmp_path).modules.state_dict()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, grid = Artefact.load(tmp_path).modules.state_dict(), grid_scores(12, 12)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert grid.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [2]},
        {"shape": {"bins": 8, "state": 8, "width": 32}},
        {"shape": {"depth": 1}},
    ],
)
def test_facts_of_other_weights_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    values = made(tmp_path).facts.values
    (tmp_path / FACTS).write_text(json.dumps(values | change))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        Artefact.load(tmp_path)


def test_missing_or_broken_weights_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / WEIGHTS).write_text("no")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Artefact.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigurationError, match="has finished"):
        Artefact.load(tmp_path)
