"""What a training leaves is read back exactly, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vtr_vllm.errors import ConfigurationError, GeometryMismatch
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.training.atp.artefact import FACTS, WEIGHTS, Artefact, describe
from vtr_vllm.training.atp.module import AtpModules, Shape

GEOMETRY = ModelGeometry(12, 128, 320, 2, 2, 64)


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    modules = AtpModules((2, 5), Shape(state=8))
    none = dict.fromkeys(("lora", "data", "options", "losses", "scores"))
    facts = describe("c0ffee", GEOMETRY, (12, 12), modules, n_min=2, target=0.25, **none)
    made = Artefact(modules, facts, tmp_path)
    made.save()
    return made


def test_round_trip(artefact: Artefact) -> None:
    found = Artefact.load(artefact.folder)
    assert found.facts == artefact.facts
    assert (found.n_min, found.grid, found.modules.layers) == (2, (12, 12), (2, 5))
    for name, tensor in artefact.modules.state_dict().items():
        assert torch.equal(found.modules.state_dict()[name], tensor), name
    found.check_fits(GEOMETRY, (12, 12), "c0ffee")
    with pytest.raises(GeometryMismatch, match="24 x 24"):
        found.check_fits(GEOMETRY, (24, 24), "c0ffee")
    with pytest.raises(ConfigurationError, match="on checkpoint c0ffee, and the model is decaf;"):
        found.check_fits(GEOMETRY, (12, 12), "decaf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"layers": [2]}, "do not belong together"),
        ({"shape": {"bins": 8, "state": 8, "width": 32}}, "do not belong together"),
        ({"shape": {"depth": 1}}, "do not belong together"),
        ({"more": 1}, "unknown"),
    ],
)
def test_facts_that_do_not_fit_are_refused(
    artefact: Artefact, change: dict[str, object], message: str
) -> None:
    (artefact.folder / FACTS).write_text(json.dumps(artefact.facts | change))
    with pytest.raises(ConfigurationError, match=message):
        Artefact.load(artefact.folder)


@pytest.mark.parametrize("name", [FACTS, WEIGHTS])
def test_a_missing_or_broken_file_is_refused(artefact: Artefact, name: str) -> None:
    (artefact.folder / name).write_text("no")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Artefact.load(artefact.folder)
    (artefact.folder / name).unlink()
    with pytest.raises(ConfigurationError, match="has finished"):
        Artefact.load(artefact.folder)
