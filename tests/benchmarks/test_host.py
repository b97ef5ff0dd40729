"""The table of the host benchmark."""

from __future__ import annotations

from benchmarks.host import PARTS, Found, table


def found(stock: float, vtr: float) -> Found:
    return {
        "decode, 1, text": {
            arm: {"step": step, **dict.fromkeys(PARTS, step / 4), "operations": count}
            for arm, step, count in (("stock", stock, 700), ("vtr", vtr, 710))
        }
    }


def test_medians_over_rounds_and_ratios_within_them() -> None:
    rows = table([found(10.0, 11.0), found(20.0, 20.0), found(12.0, 12.0)]).splitlines()
    assert len(rows) == 3
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells == [
        "decode, 1, text",
        "12.00 / 12.00",
        *["3.00 / 3.00"] * 3,
        "1.00 [1.00, 1.10]",
        "700 / 710",
    ]
    assert {len(row.split("|")) for row in rows} == {len(cells) + 2}
