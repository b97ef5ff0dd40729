"""What is served of trained modules: their own decisions, and no more tokens than items needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vtr_vllm.atp.made import made
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.schedules import Schedule, make_plan
from vtr_vllm.training.atp.writing import SCHEDULES, served, write

TOKENS = 144


def test_the_most_that_any_item_kept_may_stay(tmp_path: Path) -> None:
    artefact = made(tmp_path, target=0.3)
    found = served(artefact, [(30, 30), (72, 3)])
    assert found is not None
    assert [str(rule) for rule in found.rules] == ["atp", "atp"]
    assert found.cuts == artefact.facts.layers
    plan = make_plan(found.keep, found.rules, TOKENS)
    assert plan.counts == (*[TOKENS] * 2, *[72] * 3, *[30] * 7)
    assert found.provenance == {"target": 0.3, "items": 2}
    write(artefact, found)
    assert Schedule.load(tmp_path / SCHEDULES / "atp.json") == found


def test_without_items_everything_may(tmp_path: Path) -> None:
    found = served(made(tmp_path), [])
    assert found is not None
    plan = make_plan(found.keep, found.rules, TOKENS)
    assert plan.counts == (TOKENS,) * 12
    assert plan.cuts == (2, 5)


@pytest.mark.parametrize("layers", [(1, 4), (2, 3, 4, 5, 6)])
def test_modules_that_no_schedule_can_run_have_none(
    tmp_path: Path, layers: tuple[int, ...]
) -> None:
    assert served(made(tmp_path, AtpModules(layers, Shape())), []) is None


def test_nor_have_those_with_lora(tmp_path: Path) -> None:
    assert served(made(tmp_path, lora=8), []) is None
