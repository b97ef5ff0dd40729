import pytest

from benchmarks.rules import RULES, one_cut, parse, table
from benchmarks.shapes import Shape
from vtr_vllm.schedules import ModelGeometry, RankRule

GEOMETRY = ModelGeometry(8, 64, 128, 4, 2, 16)


class _Shape:
    geometry = GEOMETRY


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_the_same_counts(rule: str) -> None:
    shape: Shape = _Shape()  # type: ignore[assignment]
    schedule = one_cut(shape, 2, 0.25, rule)
    assert schedule.cuts == (2,)
    assert schedule.counts(576) == (576, 576, *[144] * 6)
    assert schedule.rules == (RankRule.parse(rule),)


def test_a_ratio_is_of_the_two_of_a_pair() -> None:
    options = parse(["--rules", "a", "b", "--concurrency", "1"])
    made = [("a", 1.0, 2.0), ("a", 3.0, 2.0), ("a", 2.2, 2.0), ("b", 1.0, 1.0)]
    found = [{"rule": r, "concurrency": 1, "seconds": s, "beside": o} for r, s, o in made]
    rows = table(found, options).splitlines()
    assert rows[2] == "| `a` | 1.100 (0.500 to 1.500) |"
    assert rows[3] == "| `b` | 1.000 (1.000 to 1.000) |"
