"""What a run measures, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.run import Scenario, Session
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
    session = Session(shape, *(Recorded(n, asked) for n in ("stock", "vtr")), None)  # type: ignore[arg-type]
    firsts = {}
    for number in (1, 2, 3):
        for place, budget in enumerate((1.0, 0.5, 0.25, 0.125)):
            session.pair(Scenario("serve", 1, 2, 1, ()), budget, number, place)
            firsts[number, place] = asked[-2]
            assert set(asked[-2:]) == {"stock", "vtr"}
    for place in range(4):
        assert firsts[1, place] != firsts[2, place] != firsts[3, place]
    assert firsts[1, 0] != firsts[1, 1]
