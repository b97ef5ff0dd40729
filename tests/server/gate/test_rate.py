"""Token buckets: what gets through is bounded, and what is owed is paid back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.server.gate.apps import Clock
from vtr_server.gate.rate import MOST_BUCKETS, Buckets

STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=200)


@given(STEPS, st.integers(1, 20))
def test_never_more_than_a_burst_and_what_time_brought(
    steps: list[tuple[str, float]], rate: int
) -> None:
    clock = Clock()
    buckets = Buckets(clock)
    taken = {"a": 0, "b": 0}
    for name, pause in steps:
        clock.now += pause
        wait = buckets.take(name, rate)
        assert wait >= 0.0
        taken[name] += wait == 0.0
        assert taken[name] <= rate * (1 + clock.now / 60) + 1e-6


@given(st.integers(1, 600), st.floats(0.1, 1000))
def test_the_wait_that_is_told_is_enough(rate: int, debt: float) -> None:
    clock = Clock()
    buckets = Buckets(clock)
    buckets.charge("a", rate, rate + debt)
    wait = buckets.wait("a", rate)
    assert wait > 0
    clock.now += wait * 1.000001
    assert buckets.wait("a", rate) == 0.0
    while (wait := buckets.take("a", rate)) == 0.0:
        pass
    clock.now += wait * 1.000001
    assert buckets.take("a", rate) == 0.0


def test_one_minute_at_once_and_then_evenly() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    assert [buckets.take("a", 3) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]
    clock.now = 20.0
    assert buckets.take("a", 3) == 0.0
    assert buckets.take("a", 3) == 20.0


def test_an_idle_bucket_holds_no_more_than_one_minute() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    buckets.take("a", 2)
    clock.now = 3600.0
    assert [buckets.take("a", 2) == 0.0 for _ in range(3)] == [True, True, False]


def test_the_number_of_buckets_is_bounded() -> None:
    buckets = Buckets(Clock())
    for i in range(MOST_BUCKETS + 10):
        buckets.take(str(i), 1)
    assert len(buckets) == MOST_BUCKETS
    assert buckets.take(str(MOST_BUCKETS + 9), 1) > 0.0
    assert buckets.take("0", 1) == 0.0, "the oldest was forgotten"
