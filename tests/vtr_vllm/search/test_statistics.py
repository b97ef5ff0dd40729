import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.errors import CalibrationError
from vtr_vllm.search.statistics import (
    beside_full,
    bootstrap_interval,
    items_needed,
    paired_difference,
    sample_size_report,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def answers(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


@given(SCORES)
def test_the_interval_holds_the_mean_and_stays_in_range(values):
    low, high = bootstrap_interval(values)
    assert -1e-9 <= low <= high <= 1 + 1e-9
    if len(set(values)) == 1:
        assert low - 1e-9 <= np.mean(values) <= high + 1e-9
        assert high - low > 0


def test_the_interval_of_many_binary_values_is_the_normal_one():
    low, high = bootstrap_interval(answers(300, 700))
    margin = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - margin, abs=0.003)
    assert high == pytest.approx(0.3 + margin, abs=0.003)


def test_the_interval_is_the_same_every_time():
    values = np.random.default_rng(3).random(80).tolist()
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval((rng.random(100) < 0.7).astype(float).tolist())
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_values_that_go_together_are_drawn_together():
    """Questions about an image are right or wrong together in two of three: 60 images say less than 300."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5).tolist()
    hits = {"by image": 0, "one by one": 0}
    for _ in range(300):
        image = np.repeat(rng.random(60) < 0.7, 5)
        values = np.where(rng.random(300) < 0.67, image, rng.random(300) < 0.7).astype(float)
        for name, each in (("by image", groups), ("one by one", None)):
            low, high = bootstrap_interval(values.tolist(), each)
            hits[name] += low <= 0.7 <= high
    assert 0.90 <= hits["by image"] / 300 <= 0.99
    assert hits["one by one"] / 300 < 0.80


@given(SCORES, st.integers(1, 4))
def test_a_value_seen_several_times_says_what_it_says_once(values, times):
    """Also where groups are numbered in another order."""
    groups = [-index for index in range(len(values)) for _ in range(times)]
    repeated = [value for value in values for _ in range(times)]
    once = bootstrap_interval(values)
    assert bootstrap_interval(repeated, groups) == pytest.approx(once)
    if min(values) < max(values) - 1e-3:
        needed = times * items_needed(values, 0.02)
        assert items_needed(repeated, 0.02, groups) == pytest.approx(needed, abs=times)


def test_each_score_has_a_group():
    with pytest.raises(CalibrationError, match="2 scores cannot be grouped by 3"):
        bootstrap_interval([0.0, 1.0], [0, 1, 2])


@pytest.mark.parametrize("count", [1, 20, 500])
def test_all_right_is_not_certainty(count):
    z2 = 1.959964**2
    low, high = bootstrap_interval([1.0] * count)
    assert (low, high) == pytest.approx((count / (count + z2), 1.0))  # the Wilson interval
    low, high = bootstrap_interval([0.0] * count)
    assert (low, high) == pytest.approx((0.0, z2 / (count + z2)))


def test_equal_differences_are_not_certainty():
    difference, low, high = paired_difference(answers(50, 50), answers(50, 50))
    assert difference == 0.0
    assert low == pytest.approx(-high)
    assert 0.03 < high < 0.04  # one kind of item in 27 could still differ


def test_a_paired_difference_is_sharper_than_two_intervals():
    a, b = answers(80, 20), answers(75, 25)
    difference, low, high = paired_difference(a, b)
    assert difference == pytest.approx(0.05)
    assert 0 < low < 0.05 < high
    (low_a, _), (_, high_b) = bootstrap_interval(a), bootstrap_interval(b)
    assert low_a < high_b
    assert paired_difference(b, a)[0] == pytest.approx(-0.05)


def test_a_score_beside_no_reduction():
    a, b, groups = answers(80, 20), answers(75, 25), [index // 2 for index in range(100)]
    found = beside_full(a, b, groups)
    assert found.pop("score") == pytest.approx(0.8)
    assert tuple(found.pop("minus_full").values()) == paired_difference(a, b, groups)
    assert tuple(found.values()) == bootstrap_interval(a, groups)


@pytest.mark.parametrize(
    ("half_width", "items"), [(0.02, 1849), (0.01, 7395), (0.005, 29577), (0.05, 296)]
)
def test_items_needed_follows_the_spread(half_width, items):
    values = answers(740, 260)
    assert items_needed(values, half_width) == pytest.approx(items, rel=2e-3)


@pytest.mark.parametrize("half_width", [0.02, 0.005])
def test_items_needed_without_spread_is_when_the_interval_is_that_narrow(half_width):
    items = items_needed([1.0] * 10, half_width)
    low, high = bootstrap_interval([1.0] * items)
    assert (high - low) / 2 <= half_width
    low, high = bootstrap_interval([1.0] * (items - 1))
    assert (high - low) / 2 > half_width


def test_the_report_says_now_and_then():
    report = sample_size_report(answers(160, 40))
    assert (report.items, report.mean) == (200, 0.8)
    assert (report.low, report.high) == bootstrap_interval(answers(160, 40))
    assert report.half_width == pytest.approx(0.055, abs=0.005)
    assert list(report.needed) == [0.02, 0.01, 0.005]
    assert report.needed[0.02] == items_needed(answers(160, 40), 0.02)
    text = str(report)
    assert text.startswith("200 items: 80.0, 95 % interval ")
    assert f"±2 points {report.needed[0.02]} items" in text
    assert "±0.5 points" in text


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "no scores"),
        ([0.5, 1.5], "must lie in"),
        ([-0.1], "must lie in"),
        ([math.nan], "lie in"),
    ],
)
def test_no_interval_without_scores(values, reason):
    for function in (bootstrap_interval, sample_size_report):
        with pytest.raises(CalibrationError, match=reason):
            function(values)


def test_what_cannot_be_paired_or_reached_is_refused():
    with pytest.raises(CalibrationError, match="2 scores cannot be paired with 1"):
        paired_difference([0.0, 1.0], [1.0])
    for half_width in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(CalibrationError, match="half_width"):
            items_needed([0.0, 1.0], half_width)
