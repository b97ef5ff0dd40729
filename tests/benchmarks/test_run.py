"""What a run measures, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import conversation, length, rules
from benchmarks.run import BUDGETS, Scenario, Session, main, schedules
from benchmarks.shapes import make_shape


class Recorded:
    """An arm that notes when it is asked, and answers nothing."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def measure(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(self.name)
        return {"tokens": [[1]] * spec["requests"]}


def test_each_cell_has_either_arm_first_in_turn() -> None:
    """Over an even number of cells a round too."""
    asked: list[str] = []
    shape = make_shape("demo", Path(), None, has_gpu=False)
    stock, vtr = (Recorded(name, asked) for name in ("stock", "vtr"))
    session = Session(shape, stock, vtr, schedules(shape.geometry, None))  # type: ignore[arg-type]
    firsts = {}
    for number in (1, 2, 3):
        for place, budget in enumerate((1.0, 0.5, 0.25, 0.125)):
            session.pair(Scenario("serve", 1, 2, 1, ()), budget, number, place)
            firsts[number, place] = asked[-2]
            assert set(asked[-2:]) == {"stock", "vtr"}
    for place in range(4):
        assert firsts[1, place] != firsts[2, place] != firsts[3, place]
    assert firsts[1, 0] != firsts[1, 1]


@pytest.mark.parametrize("form", ["fastv", "pdrop", "random"])
def test_budgets_that_a_form_cannot_reach_are_left_out(form: str) -> None:
    geometry = make_shape("demo", Path(), None, has_gpu=False).geometry
    found = schedules(geometry, form)
    assert list(found) == [1.0, 0.5, 0.25]
    assert [schedule.name for schedule in found.values()] == ["full", f"{form}-0.5", f"{form}-0.25"]
    assert list(schedules(geometry, None)) == list(BUDGETS)


def test_a_form_that_there_is_not_is_refused_before_an_engine_starts() -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.run: schedule .*fastw-0\.5"):
        main(["--shape", "demo", "--form", "fastw"])


@pytest.mark.parametrize("tool", [conversation, length, rules])
def test_settings_of_a_heading_are_options(tool: Any) -> None:
    assert set(tool.SETTINGS) <= set(vars(tool.parse([])))


@pytest.mark.parametrize("tool", [conversation, rules])
def test_a_shape_for_a_gpu_is_refused_in_a_sentence(
    tool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="llava-7b needs a GPU"):
        tool.main(["--shape", "llava-7b"])
