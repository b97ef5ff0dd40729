import math

import pytest

from benchmarks.attention_mass import one_cut, rate_of, table


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_twin_has_the_same_mean(rate: float) -> None:
    made = one_cut(12, 0.6, 3, rate, "last@0.5")
    assert [str(rule) for rule in made.rules] == ["diverse", "last@0.5"]
    assert rate_of(math.fsum(made.keep) / 12, 12, 0.6, 3) == pytest.approx(rate, abs=1e-12)


def test_a_row_of_the_table() -> None:
    found = {
        "layer": 3,
        "rule": "last",
        "share": 0.4,
        "mean_keep": 0.25,
        "least": 0.2,
        "greatest": 0.31,
        "adaptive": [0.9, 0.88, 0.92],
        "fixed": [0.91, 0.89, 0.93],
        "difference": [-0.01, -0.02, 0.005],
    }
    assert table([found]).splitlines()[2] == (
        "| 3 | `last@0.4` | 0.250 [0.200, 0.310] | 90.0 [88.0, 92.0] | 91.0 [89.0, 93.0] |"
        " -1.0 [-2.0, +0.5] |"
    )
