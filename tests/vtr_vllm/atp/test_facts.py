"""What is known of trained modules, and which models they are refused for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.vtr_vllm.atp.made import GEOMETRY, made
from vtr_vllm.atp.facts import FACTS, Facts
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.errors import ConfigurationError, GeometryMismatch


def test_what_it_says(tmp_path: Path) -> None:
    facts = made(tmp_path).facts
    assert Facts.load(tmp_path) == facts
    assert (facts.n_min, facts.grid, facts.layers, facts.lora) == (2, (12, 12), (2, 5), None)
    facts.check_served()


def test_another_model_is_refused(tmp_path: Path) -> None:
    facts = made(tmp_path).facts
    facts.check_geometry(GEOMETRY)
    facts.check_grid((12, 12))
    facts.check_checkpoint("c0ffee")
    with pytest.raises(GeometryMismatch, match="train for this model"):
        facts.check_geometry(dataclasses.replace(GEOMETRY, layers=13))
    with pytest.raises(GeometryMismatch, match="24 x 24"):
        facts.check_grid((24, 24))
    with pytest.raises(ConfigurationError, match="on checkpoint c0ffee, and the model is decaf;"):
        facts.check_checkpoint("decaf")
    with pytest.raises(ConfigurationError, match="that of the model cannot be told"):
        facts.check_checkpoint(None)
    with pytest.raises(ConfigurationError, match="cannot be told"):
        made(tmp_path, checkpoint=None).facts.check_checkpoint(None)


def test_what_no_engine_can_run_is_refused(tmp_path: Path) -> None:
    early = made(tmp_path, AtpModules((1, 4), Shape()))
    with pytest.raises(ConfigurationError, match="a module before layer 1"):
        early.facts.check_served()
    with pytest.raises(ConfigurationError, match="--lora"):
        made(tmp_path, lora=8).facts.check_served()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"more": 1}, "unknown"),
        ({"layers": []}, r"layers is \[\]; it must be whole numbers above 0"),
        ({"layers": ["2"]}, "layers is .*; it must be whole numbers above 0"),
        ({"layers": [5, 2]}, "layers rise"),
        ({"grid": [12]}, "rows and columns"),
        ({"grid": "12x12"}, "grid is '12x12'"),
        ({"n_min": "1"}, "n_min is '1'"),
        ({"lora": True}, "lora True"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    values = made(tmp_path).facts.values
    (tmp_path / FACTS).write_text(json.dumps(values | change))
    with pytest.raises(ConfigurationError, match=message):
        Facts.load(tmp_path)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text("no")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Facts.load(tmp_path)
    (tmp_path / FACTS).unlink()
    with pytest.raises(ConfigurationError, match="has finished"):
        Facts.load(tmp_path)
