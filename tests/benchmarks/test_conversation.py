"""The tables of the conversation benchmark, and when a conversation pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.conversation import Session, blocks, break_even, evens, parse, table
from benchmarks.shapes import follow_up, make_request, make_shape


def arm(first: float, later: float) -> dict[str, Any]:
    """Two turns; the last token comes .1 s after the first, and half of the time is the CPU's."""
    turns = [
        {"ttft_s": t, "total_s": t + 0.1, "ttft_cpu_s": t / 2, "total_cpu_s": t / 2 + 0.05}
        | {"prompt_tokens": 600.0, "cached_tokens": 32.0 * n}
        for n, t in enumerate((first, later))
    ]
    return {"wall_s": first + later, "cpu_s": 1.0, "kv_peak_bytes": 100, "turns": turns}


def pairs(*vtr: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = (("full", 1.0), ("local", 0.25), ("local", 0.25))
    return [
        {"kind": kind, "budget": budget, "same_tokens": 1.0, "stock": arm(1.0, 0.1), "vtr": each}
        for (kind, budget), each in zip(kinds, vtr, strict=False)
    ]


@pytest.mark.parametrize("key", ["total_s", "total_cpu_s"])
def test_full_budget_wins_once_follow_ups_cost_what_the_first_turn_saved(key: str) -> None:
    """.7 s saved, .2 s paid in each later turn."""
    assert break_even(pairs(arm(0.3, 0.3)), key) == pytest.approx(3.5)
    assert break_even(pairs(arm(1.0, 0.1)), key) is None, "nothing saved"
    assert break_even(pairs(arm(0.3, 0.1)), key) is None, "nothing paid"


def test_the_table_has_a_row_a_turn_and_ratios_of_pairs() -> None:
    rows = table(pairs(arm(1.0, 0.1), arm(0.5, 0.5), arm(0.25, 0.25))).splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:5]] == [
        ["| full 1", "1"],
        ["| full 1", "2"],
        ["| full 1", "all, to the last token"],
    ]
    assert "1.000 / 0.375 = 3.00 [2.00, 4.00]" in rows[5]
    assert "0.500 / 0.188 = 3.00 [2.00, 4.00]" in rows[5]
    assert "32 of 600" in rows[6]
    assert {len(row.split("|")) for row in rows} == {8}


def test_break_evens_are_told_where_there_are_any() -> None:
    rows = evens(pairs(arm(1.0, 0.1), arm(0.3, 0.3))).splitlines()
    assert rows[2:] == ["| full 1 |  |  |", "| local 0.25 | 3.5 follow-ups | 3.5 follow-ups |"]


def test_what_follows_a_first_question() -> None:
    first = make_request("half-b", 3)
    again = follow_up("half-b", "talk", first, "red", 3, 1)
    assert again["prompt"].startswith(f"{first['prompt']}red USER:")
    assert again["multi_modal_data"] is first["multi_modal_data"]
    more = follow_up("half-b", "images", again, "blue", 3, 2)
    assert more["prompt"].startswith(f"{again['prompt']}blue USER: <image>")
    assert len(more["multi_modal_data"]["image"]) == 2
    others = {follow_up("half-b", "questions", first, "x", 3, turn)["prompt"] for turn in (1, 2)}
    assert len(others) == 2
    assert all(text.startswith(first["prompt"]) and "red" not in text for text in others)


def test_a_cache_of_some_bytes_has_more_blocks_where_they_hold_fewer_layers(tmp_path: Path) -> None:
    shape = make_shape("half-b", tmp_path, None, has_gpu=False, dtype="float32")
    # 24 layers of 32 tokens, keys and values of 2 heads of 64; VTR's six bands have 4 layers each
    assert blocks(shape, "stock", 48 << 20) == (48 << 20) // (2 * 24 * 32 * 2 * 64 * 4) == 64
    assert blocks(shape, "vtr", 48 << 20) == 6 * 64


def test_a_kind_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--arms", "full,locl"])
    assert "no such kind: locl; there are full, guided, local" in capsys.readouterr().err
    assert parse(["--arms", "full"]).arms == [("full", 1.0)]


def test_each_schedule_has_either_arm_first_in_turn(tmp_path: Path) -> None:
    asked: list[str] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def measure(self, spec: dict[str, Any]) -> dict[str, Any]:
            asked.append(self.name)
            return {"tokens": [[1]]}

    shape = make_shape("half-b", tmp_path, None, has_gpu=False, dtype="float32")
    session = Session(shape, Recorded("stock"), Recorded("vtr"), parse([]))  # type: ignore[arg-type]
    firsts = []
    for number in (0, 1):
        for place, kind in enumerate(("full", "local")):
            session.pair(kind, 1.0, number, place)
            firsts.append(asked[-2])
    assert firsts == ["stock", "vtr", "vtr", "stock"]
