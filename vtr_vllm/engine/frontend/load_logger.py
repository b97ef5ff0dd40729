"""How loaded the engines are, for the front-end process: the entry point ``vtr`` of the group
``vllm.stat_logger_plugins``.

vLLM hands each engine's numbers to its loggers at every step; ours stands beside vLLM's own. As
any plugin of the group it makes vLLM count also under ``--disable-log-stats``. Of several API
server processes each sees only the steps that vLLM reports to it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

_RECENT = 4096  # first tokens that are remembered


@dataclass(frozen=True)
class _EngineLoad:
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class Load:
    """The latest numbers of every engine, and what happened recently on any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engines: dict[int, _EngineLoad] = {}
        self.first_tokens: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        """(when, on the monotonic clock; seconds from arrival to the first token), in order."""

    @property
    def running(self) -> int:
        """Requests in the engines' batches."""
        return sum(engine.running for engine in self._engines.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(engine.waiting for engine in self._engines.values())

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1; mean over the engines, whose caches are alike."""
        if not self._engines:
            return 0.0
        return sum(engine.kv_usage for engine in self._engines.values()) / len(self._engines)

    def expect(self, engines: Sequence[int]) -> None:
        """Start anew with these engines, all idle."""
        self._engines = {engine: _EngineLoad() for engine in engines}

    def record(
        self, engine: int, scheduler: SchedulerStats | None, step: IterationStats | None
    ) -> None:
        """Take in one step of one engine; either part may be missing."""
        if scheduler is not None:
            self._engines[engine] = _EngineLoad(
                scheduler.num_running_reqs,
                scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs,
                scheduler.kv_cache_usage,
            )
        if step is not None:
            now = self._clock()
            self.first_tokens.extend((now, latency) for latency in step.time_to_first_tokens_iter)


LOAD = Load()
"""The load of this process's engines."""


class LoadLogger(AggregateStatLoggerBase):
    """Writes to ``LOAD``."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        LOAD.expect(engine_indexes)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        LOAD.record(engine_idx, scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """vLLM's base class asks for it; there is nothing to say."""
