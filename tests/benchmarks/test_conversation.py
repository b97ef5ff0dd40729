"""The table of the conversation benchmark, and when a conversation pays."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conversation import break_even, table


def arm(first: float, later: float) -> dict[str, Any]:
    """Two turns; the last token comes .1 s after the first."""
    turns = [
        {"ttft_s": t, "total_s": t + 0.1, "prompt_tokens": 600.0, "cached_tokens": 32.0 * n}
        for n, t in enumerate((first, later))
    ]
    return {"wall_s": first + later, "cpu_s": 1.0, "kv_peak_bytes": 100, "turns": turns}


def pairs(*vtr: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"budget": budget, "same_tokens": 1.0, "stock": arm(1.0, 0.1), "vtr": each}
        for budget, each in zip((1.0, 0.25, 0.25), vtr, strict=False)
    ]


def test_full_budget_wins_once_follow_ups_cost_what_the_first_turn_saved() -> None:
    """.7 s saved, .2 s paid in each later turn."""
    assert break_even(pairs(arm(0.3, 0.3))) == pytest.approx(3.5)
    assert break_even(pairs(arm(1.0, 0.1))) is None, "nothing saved"
    assert break_even(pairs(arm(0.3, 0.1))) is None, "nothing paid"


def test_the_table_has_a_row_a_budget_and_ratios_of_pairs() -> None:
    text = table(pairs(arm(1.0, 0.1), arm(0.5, 0.5), arm(0.25, 0.25)))
    rows = text.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 1.0", "| 0.25"]
    assert "1.000 / 0.375 = 3.00 [2.00, 4.00]" in rows[1]
    assert "32 of 600" in rows[1]
    assert {len(row.split("|")) for row in text.splitlines()} == {11}
