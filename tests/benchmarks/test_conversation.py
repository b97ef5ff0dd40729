"""The tables of the conversation benchmark, and when a conversation pays."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conversation import break_even, evens, table


def arm(first: float, later: float) -> dict[str, Any]:
    """Two turns; the last token comes .1 s after the first, and half of the time is the CPU's."""
    turns = [
        {"ttft_s": t, "total_s": t + 0.1, "ttft_cpu_s": t / 2, "total_cpu_s": t / 2 + 0.05}
        | {"prompt_tokens": 600.0, "cached_tokens": 32.0 * n}
        for n, t in enumerate((first, later))
    ]
    return {"wall_s": first + later, "cpu_s": 1.0, "kv_peak_bytes": 100, "turns": turns}


def pairs(*vtr: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"budget": budget, "same_tokens": 1.0, "stock": arm(1.0, 0.1), "vtr": each}
        for budget, each in zip((1.0, 0.25, 0.25), vtr, strict=False)
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
        ["| 1.0", "1"],
        ["| 1.0", "2"],
        ["| 1.0", "all, to the last token"],
    ]
    assert "1.000 / 0.375 = 3.00 [2.00, 4.00]" in rows[5]
    assert "0.500 / 0.188 = 3.00 [2.00, 4.00]" in rows[5]
    assert "32 of 600" in rows[6]
    assert {len(row.split("|")) for row in rows} == {8}


def test_break_evens_are_told_where_there_are_any() -> None:
    rows = evens(pairs(arm(1.0, 0.1), arm(0.3, 0.3))).splitlines()
    assert rows[2:] == ["| 1.0 |  |  |", "| 0.25 | 3.5 follow-ups | 3.5 follow-ups |"]
