"""The load of the engines, as vLLM's own logger manager reports it."""

import importlib.metadata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.metrics.loggers import (
    PrometheusStatLogger,
    StatLoggerManager,
    load_stat_logger_plugin_factories,
)
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from vtr_vllm.engine.frontend.load_logger import LOAD, Load, LoadLogger


def scheduler(running=0, waiting=0, skipped=0, usage=0.0):
    return SchedulerStats(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=skipped,
        kv_cache_usage=usage,
    )


def step(first_tokens=()):
    stats = IterationStats()
    stats.time_to_first_tokens_iter = list(first_tokens)
    return stats


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_an_idle_start():
    load = Load()
    assert (load.running, load.waiting, load.kv_usage) == (0, 0, 0.0)
    assert not load.first_tokens


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 50), st.floats(0, 1)),
        max_size=30,
    )
)
def test_several_engines_add_up(records):
    """The last word of each engine counts, and engines that said nothing yet are idle."""
    load = Load()
    load.expect(range(4))
    last = dict.fromkeys(range(4), (0, 0, 0.0))
    for engine, running, waiting, usage in records:
        load.record(engine, scheduler(running, waiting, 1, usage), None)
        last[engine] = (running, waiting + 1, usage)
    assert load.running == sum(running for running, _, _ in last.values())
    assert load.waiting == sum(waiting for _, waiting, _ in last.values())
    assert load.kv_usage == pytest.approx(sum(usage for _, _, usage in last.values()) / 4)
    assert 0 <= load.kv_usage <= 1


def test_first_tokens_and_when_they_came():
    clock = Clock()
    load = Load(clock)
    load.record(0, None, step([0.5, 0.75]))
    clock.now = 108.0
    load.record(1, None, step([0.25]))
    load.record(1, scheduler(), step())  # a step that only decodes
    assert list(load.first_tokens) == [(100.0, 0.5), (100.0, 0.75), (108.0, 0.25)]


def test_memory_is_bounded():
    load = Load()
    for _ in range(10_000):
        load.record(0, scheduler(), step([0.1, 0.2]))
    assert len(load.first_tokens) == 4096


def test_vllm_loads_it_beside_its_own_loggers(monkeypatch):
    """Through vLLM's manager, for two engines; vLLM's own loggers are all still there."""
    (entry,) = importlib.metadata.entry_points(group="vllm.stat_logger_plugins", name="vtr")
    assert entry.load() is LoadLogger
    monkeypatch.setenv("VLLM_PLUGINS", "vtr")
    assert load_stat_logger_plugin_factories() == [LoadLogger]
    LOAD.record(7, scheduler(99), None)
    made = []
    monkeypatch.setattr(
        "vllm.v1.metrics.loggers.PrometheusStatLogger",
        type("Seen", (PrometheusStatLogger,), {"__init__": lambda self, *a: made.append(a)}),
    )
    manager = StatLoggerManager(
        SimpleNamespace(), [0, 1], [LoadLogger], enable_default_loggers=False
    )
    assert len(made) == 1, "ours does not stand in for vLLM's Prometheus metrics"
    assert LOAD.running == 0, "numbers of an earlier engine are gone"
    ours = manager.stat_loggers[0]
    manager.stat_loggers = [ours]
    for engine in (0, 1):
        manager.record(scheduler(2, 3, 0, 0.5), step([0.5]), engine_idx=engine)
    manager.log()
    manager.log_engine_initialized()
    manager.record_sleep_state()
    manager.record_admission_rejection("max_num_queued_reqs")
    assert (LOAD.running, LOAD.waiting, LOAD.kv_usage) == (4, 6, 0.5)
    LOAD.expect([0])
