"""When the engine made the first token of a request, from vLLM's own statistics.

An answer in one piece shows nothing before its end, and what vLLM then hands out carries the
statistics of one of several choices. So the statistics of each are held from where vLLM makes them:
``OutputProcessor.add_request``, called in the context of the request, once for each prompt and choice.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import RequestStateStats

__all__ = ["FirstTokens", "collect_first_tokens", "install"]


class FirstTokens:
    """The first tokens of all prompts and choices of one request, as they come."""

    def __init__(self) -> None:
        self._stats: list[RequestStateStats] = []

    def add(self, stats: RequestStateStats) -> None:
        """Hold what vLLM counts of one more prompt or choice."""
        self._stats.append(stats)

    def earliest(self) -> float | None:
        """When the first of them was made, in seconds of ``time.monotonic``; None if none was yet.

        vLLM tells it by the clock of the day, in this process.
        """
        made = [
            each.arrival_time + each.first_token_latency
            for each in self._stats
            if each.num_generation_tokens
        ]
        return time.monotonic() - max(0.0, time.time() - min(made)) if made else None


_collector: ContextVar[FirstTokens | None] = ContextVar("vtr_first_tokens", default=None)


@contextlib.contextmanager
def collect_first_tokens() -> Iterator[FirstTokens]:
    """Collect those of what is begun inside the context, in the tasks that it starts too."""
    found = FirstTokens()
    token = _collector.set(found)
    try:
        yield found
    finally:
        _collector.reset(token)


def install() -> None:
    """Wrap vLLM's output processor; safe to call again."""
    stock = OutputProcessor.add_request
    if getattr(stock, "vtr_first_tokens", False):
        return

    @functools.wraps(stock)
    def add_request(
        self: OutputProcessor, request: EngineCoreRequest, *args: Any, **kwargs: Any
    ) -> None:
        stock(self, request, *args, **kwargs)
        collector = _collector.get()
        stats = self.request_states[request.request_id].stats
        if collector is not None and stats is not None:
            collector.add(stats)

    add_request.vtr_first_tokens = True
    OutputProcessor.add_request = add_request
