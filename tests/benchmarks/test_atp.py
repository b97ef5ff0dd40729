"""Fixed counts beside those that modules decide."""

from __future__ import annotations

import pytest

from benchmarks.atp import fixed, table
from vtr_vllm.schedules import ModelGeometry, RankRule, Schedule

GEOMETRY = ModelGeometry(4, 64, 128, 4, 2, 16)
ATP = RankRule.parse("atp")
MADE = Schedule("atp", GEOMETRY, (1.0, 1.0, 0.9, 0.8), (ATP, ATP), "atp")


def test_each_cut_keeps_the_mean_of_what_the_modules_kept_there() -> None:
    found = fixed(MADE, [[1, 1, 0.5, 0.25], [1, 1, 0.3, 0.25]], "atp-fixed")
    assert found.keep == pytest.approx((1, 1, 0.4, 0.25))
    assert [str(rule) for rule in found.rules] == ["atp-fixed", "atp-fixed"]


def test_modules_that_drop_nothing_at_a_cut_have_no_twin() -> None:
    with pytest.raises(ValueError, match=r"drop before layers \[2\], and lie before \(2, 3\)"):
        fixed(MADE, [[1, 1, 0.5, 0.5]], "atp-fixed")


def test_rows_of_the_table() -> None:
    own = {"way": "modules", "keep": [0.25, 0.1, 0.4], "right": [0.6, 0.57, 0.63]}
    other = own | {"way": "fixed", "difference": [0.01, -0.02, 0.04]}
    lines = table([own, other]).splitlines()
    assert lines[2] == "| modules | 0.250 [0.100, 0.400] | 60.0 [57.0, 63.0] |  |"
    assert lines[3].endswith("| +1.0 [-2.0, +4.0] |")
