"""The table of the overhead benchmark pairs what was measured in one round."""

from __future__ import annotations

import pytest

from benchmarks.overhead import ARMS, PAIRS, body, server_flags, spread, table
from benchmarks.shapes import make_shape


def rounds() -> list[dict]:
    """Rounds of a machine that gets slower, with vtr always twice as slow as stock."""
    found = []
    for slow in (1.0, 2.0, 4.0):
        numbers = {
            arm: {
                "requests_per_s": 10 / slow / factor,
                "ttft_p50_s": 0.1 * slow * factor,
                "front_cpu_s": 0.01 * factor,
                "engine_cpu_s": 0.02,
            }
            for arm, factor in zip(ARMS, (1, 1, 2), strict=True)
        }
        found.append({"shape": "demo", "concurrency": 8, **numbers})
    return found


def test_ratios_are_of_one_round() -> None:
    text = table(rounds())
    assert "| demo | 8 | vtr / stock | 0.500 [0.500, 0.500] | 2.000 [2.000, 2.000]" in text
    assert "| demo | 8 | engine / stock | 1.000 [1.000, 1.000]" in text
    assert len(text.splitlines()) == 2 + len(ARMS) + len(PAIRS)


def test_one_round_is_its_own_spread() -> None:
    assert spread([2.0]) == "2.000 [2.000, 2.000]"


def test_no_two_requests_have_the_same_image(tmp_path: object) -> None:
    shape = make_shape("demo", None, None, False)  # type: ignore[arg-type]  # packaged: no scratch
    assert body(shape, 0, 8) != body(shape, 1, 8)
    assert body(shape, 0, 8) == body(shape, 0, 8)


@pytest.mark.parametrize("flag", ["--worker-cls", "--scheduler-cls", "--additional-config"])
def test_the_shared_flags_hold_nothing_of_ours(flag: str) -> None:
    shape = make_shape("demo", None, None, False)  # type: ignore[arg-type]
    assert flag not in server_flags(shape)
