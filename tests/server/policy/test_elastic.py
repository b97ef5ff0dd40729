"""The controller in simulated time: it keeps its objective, its bounds and its calm."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.queue_simulation import (
    CAPACITY,
    OBJECTIVE,
    Reported,
    Simulation,
    poisson,
    regular,
)
from vtr_server.policy.elastic import (
    ENOUGH_TTFTS,
    HOLD,
    Backlog,
    Controller,
    Elastic,
    Signals,
    Work,
    within,
)
from vtr_server.policy.settings import ElasticSettings

BUDGETS = st.floats(0.01, 1.0)
LEVELS = st.lists(BUDGETS, min_size=2, max_size=6, unique=True).map(
    lambda levels: tuple(sorted(levels, reverse=True))
)
WORKS = st.builds(
    Work, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.just(0.1), st.just(0.9)
)


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def controller(**changes) -> tuple[Controller, Clock]:
    clock = Clock()
    return Controller(ElasticSettings(**{"ttft_seconds": 1.0} | changes), clock), clock


def feed(found: Controller, clock: Clock, signals: Signals, intervals: int) -> list[float]:
    """The level after each of some equal intervals of half a second."""
    levels = []
    for _ in range(intervals):
        clock.now += 0.5
        found.observe(signals)
        levels.append(found.decide())
    return levels


# ---- bounds ----


@given(LEVELS, st.data(), BUDGETS, BUDGETS)
def test_a_level_is_kept_within_bounds(levels, data, one, other) -> None:
    level = data.draw(st.sampled_from(levels))
    minimum, maximum = sorted((one, other))
    found = within(levels, level, minimum, maximum)
    assert minimum <= found <= maximum
    inside = [each for each in levels if minimum <= each <= maximum]
    if inside:
        assert found in inside
        assert abs(found - level) == min(abs(each - level) for each in inside)
    else:
        assert found in (minimum, maximum)


def test_without_a_level_inside_the_nearer_bound_holds() -> None:
    levels = (1.0, 0.5, 0.25)
    assert within(levels, 1.0, 0.6, 0.8) == 0.8
    assert within(levels, 0.25, 0.6, 0.8) == 0.6
    assert within(levels, 0.5, 0.6, 1.0) == 1.0
    assert within(levels, 0.5, 0.3, 0.3) == 0.3


@given(LEVELS, WORKS)
def test_work_never_grows_as_the_level_falls(levels, work) -> None:
    costs = [work.at(levels, level) for level in levels]
    assert costs == sorted(costs, reverse=True)


def test_a_fixed_request_costs_the_same_at_every_level() -> None:
    work = Work(text=10, kept=90)
    assert {work.at((1.0, 0.5), level) for level in (1.0, 0.5)} == {work.spent} == {100}


# ---- any signals ----

SIGNALS = st.builds(
    Signals,
    waiting=st.integers(0, 1000),
    running=st.integers(0, 64),
    backlog=st.floats(0, 1e9),
    arrived=st.lists(WORKS, max_size=3),
    finished=st.floats(0, 1e8),
    busy_seconds=st.floats(0, 10),
    kv_usage=st.floats(0, 1),
    ttfts=st.lists(st.tuples(st.floats(90, 200), st.floats(0, 50)), max_size=30),
)


@given(LEVELS, st.lists(st.tuples(SIGNALS, st.floats(0, 30)), max_size=30))
def test_whatever_it_is_told_it_takes_one_step_at_most(levels, told) -> None:
    found, clock = controller(levels=levels)
    index = 0
    for signals, seconds in told:
        clock.now += seconds
        found.observe(signals)
        level = found.decide()
        assert level in levels
        assert level == found.level
        assert abs(levels.index(level) - index) <= 1
        index = levels.index(level)


@given(st.floats(0, 20), st.floats(0, 20), st.floats(0, 1e5), st.floats(0, 1e5))
def test_under_constant_signals_it_settles_and_more_load_settles_no_higher(a, b, c, d) -> None:
    """Load is (requests an interval, backlog); the engine does 10,000 token-layers a second."""
    settled = []
    for requests, backlog in ((min(a, b), min(c, d)), (max(a, b), max(c, d))):
        found, clock = controller()
        arrived = [Work(100, 1000, 1000)] * round(requests)
        signals = Signals(1, 1, backlog, arrived, finished=5000, busy_seconds=0.5)
        levels = feed(found, clock, signals, 60)
        assert len(set(levels[10:])) == 1
        assert levels == sorted(levels, reverse=True)
        settled.append(levels[-1])
    assert settled[0] >= settled[1]


# ---- one cause at a time ----


def test_a_full_kv_cache_steps_down_and_a_filled_one_holds_the_level() -> None:
    found, clock = controller()
    assert feed(found, clock, Signals(running=1, kv_usage=0.96), 2) == [0.75, 0.5]
    assert found.reason == "kv"
    assert set(feed(found, clock, Signals(running=1, kv_usage=0.9), 50)) == {0.5}
    assert feed(found, clock, Signals(running=1, kv_usage=0.5), 60)[-1] == 1.0
    assert found.reason == "calm"


def test_late_first_tokens_step_down_once_for_the_requests_of_one_level() -> None:
    found, clock = controller()
    clock.now += 2
    late = [(clock.now, 0.4)] * (ENOUGH_TTFTS - 2) + [(clock.now, 0.9)] * 2
    assert feed(found, clock, Signals(running=1, ttfts=late[1:]), 1) == [1.0]  # too few to tell
    assert feed(found, clock, Signals(running=1, ttfts=late[:1]), 1) == [0.75]
    assert found.reason == "p95"
    # others that came before the step say nothing of the new level
    before = [(clock.now + 0.4, 0.9)] * ENOUGH_TTFTS
    assert feed(found, clock, Signals(running=1, ttfts=before), 1) == [0.75]


def test_one_late_token_of_twenty_is_within_the_objective() -> None:
    found, clock = controller()
    clock.now += 2
    ttfts = [(clock.now, 0.4)] * 19 + [(clock.now, 1.9)]
    assert feed(found, clock, Signals(running=1, ttfts=ttfts), 1) == [1.0]


def test_the_prediction_is_backlog_and_own_work_over_the_rate() -> None:
    found, clock = controller()
    assert found.predicted_ttft is None
    arrived = [Work(100, 900, 900)]
    feed(found, clock, Signals(1, 1, 3000.0, arrived, finished=8000, busy_seconds=0.8), 1)
    assert found.predicted_ttft == pytest.approx(0.4)
    assert found.predicted(4) == pytest.approx((3000 + 100 + 0.25 * 900) / 10_000)
    assert found.level == 1.0


def test_a_load_that_no_engine_sustains_is_never_stepped_up_to() -> None:
    found, clock = controller()
    feed(found, clock, Signals(running=1, kv_usage=1.0), 4)
    assert found.level == 0.25
    # 10 requests a second of 0.05 s each at the level above: half of the engine's time
    half = Signals(1, 1, 0, [Work(0, 1000, 1333)] * 5, finished=1000, busy_seconds=0.1)
    assert feed(found, clock, half, 100)[-1] == 0.5  # there 0.667 of it; at 0.75 all of it
    assert found.sustained(1) > 10


def test_an_idle_server_returns_to_the_top() -> None:
    found, clock = controller()
    feed(found, clock, Signals(1, 1, 9e9, [Work(0, 1)], finished=1, busy_seconds=1), 8)
    assert found.level == 0.25
    levels = feed(found, clock, Signals(), int(HOLD / 0.5) + 4)
    assert levels[-1] == 1.0
    assert [*dict.fromkeys(levels)] == sorted(ElasticSettings(ttft_seconds=1.0).levels)
    assert found.reason == "idle"


# ---- a queue ----


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 4.0), st.floats(1.3, 3.0))
def test_a_constant_load_settles_and_more_of_it_no_higher(load, factor) -> None:
    means = []
    for each in (load, load * factor):
        run = Simulation().run(regular(each * CAPACITY, 120), 120)
        assert run.changes(0.5) <= 2  # in 120 intervals
        means.append(run.levels[-1])
    assert means[0] >= means[1]


@pytest.mark.parametrize("seed", range(3))
def test_auto_holds_the_objective_where_full_breaks_it(seed) -> None:
    arrivals = poisson(2 * CAPACITY, 120, seed)
    full, auto = (Simulation().run(arrivals, 120, budget) for budget in (1.0, None))
    assert full.p95 > 10 * OBJECTIVE
    assert auto.p95 <= OBJECTIVE
    assert auto.goodput > 10 * full.goodput


@pytest.mark.parametrize(("load", "least"), [(0.25, 0.8), (0.5, 0.55), (1.0, 0.35)])
def test_auto_spends_what_the_load_allows(load, least) -> None:
    run = Simulation().run(poisson(load * CAPACITY, 240, 1), 240)
    assert run.p95 <= OBJECTIVE
    assert run.mean_budget > least


def test_above_what_any_level_sustains_it_stays_at_the_lowest() -> None:
    run = Simulation().run(poisson(5 * CAPACITY, 60, 0), 60)
    assert set(run.levels[20:]) == {0.25}


def test_a_rush_passes() -> None:
    rush = [30 + time for time in poisson(2 * CAPACITY, 60, 2)]
    run = Simulation().run([*poisson(0.2 * CAPACITY, 30, 3), *rush, 120.0], 180)
    assert run.levels[55] >= 0.75
    assert min(run.levels) == 0.25
    assert run.levels[-1] == 1.0


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0])
def test_answers_that_hide_their_first_token_are_controlled_alike(load) -> None:
    arrivals = poisson(load * CAPACITY, 120, 0)
    seen, hidden = (Simulation(streamed=each).run(arrivals, 120) for each in (True, False))
    assert hidden.levels == seen.levels


# ---- the backlog ----


@given(st.lists(st.tuples(st.sampled_from("afdx"), st.integers(0, 6), st.floats(0, 5))))
def test_all_admitted_work_is_finished_open_or_given_up(actions) -> None:
    clock = Clock()
    backlog, load = Backlog(clock), Reported()
    admitted = given_up = finished = busy = 0.0
    open_ones: dict[str, float] = {}
    for number, (action, choice, seconds) in enumerate(actions):
        clock.now += seconds
        name = next(itertools.islice(open_ones, choice, None), "none")
        if action == "a":
            backlog.admitted(str(number), Work(1, number))
            open_ones[str(number)] = 1 + number
            admitted += 1 + number
        elif action == "f":
            backlog.first_token(name)
            open_ones.pop(name, None)
        else:
            backlog.done(name, completed=action == "d")
            gone = open_ones.pop(name, 0)
            given_up += gone if action == "x" else 0
        signals = backlog.signals(load, [])
        finished, busy = finished + signals.finished, busy + signals.busy_seconds
        assert signals.backlog == sum(open_ones.values())
        assert admitted == pytest.approx(finished + given_up + signals.backlog)
    assert 0 <= busy <= clock.now - 100 + 1e-6


def test_hidden_first_tokens_settle_the_oldest_but_never_the_waiting() -> None:
    clock = Clock()
    backlog, load = Backlog(clock), Reported()
    for name in "abcd":
        backlog.admitted(name, Work(1, 0))
    backlog.first_token("b")
    clock.now += 1
    backlog.settle([100.5, 100.5], waiting=2)  # b's, which was claimed, and a's
    assert backlog.signals(load, []).backlog == 2
    backlog.settle([101, 101], waiting=2)  # of requests that are not ours
    found = backlog.signals(load, [])
    assert (found.backlog, found.finished) == (2, 0)
    backlog.settle([], waiting=0)
    assert backlog.signals(load, []).backlog == 2


def test_several_answers_to_one_prompt_settle_one_request() -> None:
    load, clock = Reported(), Clock()
    elastic = Elastic(
        ElasticSettings(ttft_seconds=1.0), load, lambda *state: None, load.steps.append, clock
    )
    for name in "ab":
        elastic.backlog.admitted(name, Work(1, 0))
    clock.now += 0.5
    load.first_tokens = [(clock.now, 0.5)] * 4
    elastic.tick()
    assert elastic.controller.backlog == 1
    elastic.tick()  # seen already
    assert elastic.controller.backlog == 1


def test_busy_time_ends_at_the_last_first_token() -> None:
    clock = Clock()
    backlog, load = Backlog(clock), Reported()
    clock.now += 5  # nothing to do
    backlog.admitted("a", Work(6, 0))
    backlog.admitted("b", Work(6, 0))
    clock.now += 2
    backlog.first_token("a")
    clock.now += 3
    found = backlog.signals(load, [])
    assert (found.finished, found.busy_seconds, found.backlog) == (6, 2, 6)
    backlog.first_token("b")
    found = backlog.signals(load, [])
    assert (found.finished, found.busy_seconds, found.backlog) == (6, 3, 0)


# ---- at work ----


def test_it_reports_each_interval_and_each_step() -> None:
    load, clock, states = Reported(), Clock(), []
    elastic = Elastic(
        ElasticSettings(ttft_seconds=1.0),
        load,
        lambda *state: states.append(state),
        load.steps.append,
        clock,
    )
    elastic.tick()
    assert states[0][0] == 1.0
    assert math.isnan(states[0][1])
    # two that fixed their budget: never touched, but the others wait for them
    elastic.backlog.admitted("a", Work(100, 100))
    elastic.backlog.admitted("b", Work(1000, 1000))
    clock.now += 0.1
    elastic.backlog.first_token("a")
    elastic.tick()
    assert states[1] == (0.75, pytest.approx((2000 + 1100) / 2000, rel=0.02), 2000, 1.0)
    assert load.steps == ["down"]
    assert elastic.budget(0.8, 1.0) == 1.0
    assert elastic.budget(0.05, 0.6) == 0.5
    elastic.backlog.done("b", completed=False)
    for _ in range(20):
        clock.now += 0.5
        elastic.tick()
    assert load.steps == ["down", "up"]


def test_each_step_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    load, clock = Reported(), Clock()
    elastic = Elastic(
        ElasticSettings(ttft_seconds=1.0), load, lambda *state: None, load.steps.append, clock
    )
    caplog.set_level(logging.INFO, "vllm.vtr")
    logger = logging.getLogger("vllm.vtr")  # vLLM's loggers hand nothing on
    logger.addHandler(caplog.handler)
    try:
        elastic.backlog.admitted("a", Work(100, 100))
        elastic.backlog.admitted("b", Work(1000, 1000))
        clock.now += 0.1
        elastic.backlog.first_token("a")
        elastic.tick()
    finally:
        logger.removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    assert said == {
        "VTR answers budget auto with 0.75, before with 1 (prediction: 1.56 s to a first token,"
        " 2000 token-layers wait)"
    }


def test_it_runs_until_it_is_cancelled() -> None:
    async def three_intervals() -> int:
        load, seen, enough = Reported(), [], asyncio.Event()

        def report(*state: float) -> None:
            seen.append(state)
            if len(seen) == 3:
                enough.set()

        settings_ = ElasticSettings(ttft_seconds=1.0, interval_seconds=0.01)
        task = asyncio.create_task(Elastic(settings_, load, report, load.steps.append).run())
        await asyncio.wait_for(enough.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(seen)

    assert asyncio.run(three_intervals()) >= 3
