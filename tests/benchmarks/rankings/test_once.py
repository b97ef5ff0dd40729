"""Pairs of schedules differ in the rules only."""

from __future__ import annotations

import pytest

from benchmarks.rankings.once import pairs
from tests.benchmarks.rankings.comparisons import GEOMETRY, comparison
from vtr_vllm.demo.world import KINDS


def test_pairs_have_equal_counts_and_differ_after_the_first_cut() -> None:
    for pair in pairs(GEOMETRY):
        assert pair.once.counts(144) == pair.each.counts(144)
        assert pair.once.budget == pair.each.budget == pair.budget
        assert {str(rule) for rule in pair.each.rules} == {"last"}
        assert [str(rule) for rule in pair.once.rules[1:]] == ["previous"] * (
            len(pair.each.cuts) - 1
        )
        assert pair.once.rules[0] == pair.each.rules[0]


def test_a_comparison_says_where_the_gain_is() -> None:
    found = comparison(0.5)
    assert (found["each"], found["once"]) == (1.0, 0.8)
    assert found["gain"] == pytest.approx(0.2)
    assert found["low"] < found["gain"] < found["high"]
    assert found["gain_by_kind"] == dict.fromkeys(KINDS, 0.0) | {KINDS[1]: 1.0}
    assert found["cuts"] == {"2": 126, "5": 53, "8": 9}
