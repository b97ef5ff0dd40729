"""When the engine made the first token of a request, how much of its prompt was cached before, and how many
vision tokens its adaptive cuts kept.

An answer in one piece shows nothing before its end, and what vLLM then hands out carries the
statistics of one of several choices. So the state of each is held from where vLLM makes it:
``OutputProcessor.add_request``, called in the context of the request, once for each prompt and choice.
"""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import (
    OutputProcessor,
    OutputProcessorOutput,
    RequestState,
)

from vtr_vllm.engine.common.adaptive_counts import take_told

__all__ = ["FirstTokens", "collect_first_tokens", "install"]


_LOOKED_AT = 32
_COUNTS = "vtr_counts"
"""Of vLLM's state of a request, where its adaptive cuts' counts are."""


@dataclass
class _Choices:
    """The choices of one prompt."""

    all: list[RequestState] = field(default_factory=list)
    waiting: list[RequestState] = field(default_factory=list)
    """Not yet seen with a first token, in the order in which they were begun."""
    least: int | None = None
    """Tokens that were cached for any of the others; None: there is none."""

    def cached(self) -> int:
        # A stream asks at the end of every choice, and there may be thousands: they run in their order.
        next_ones = self.waiting[:_LOOKED_AT]
        first = [state.num_cached_tokens for state in next_ones if not state.is_prefilling]
        if first:
            self.waiting[:_LOOKED_AT] = [state for state in next_ones if state.is_prefilling]
            self.least = min(first if self.least is None else [*first, self.least])
        return self.least or 0


class FirstTokens:
    """The first tokens of all prompts and choices of one request, as they come."""

    def __init__(self) -> None:
        self._states: list[RequestState] = []
        self._choices: defaultdict[str, _Choices] = defaultdict(_Choices)

    def add(self, state: RequestState) -> None:
        """Hold what vLLM knows of one more prompt or choice."""
        self._states.append(state)
        choices = self._choices[state.external_req_id]
        choices.all.append(state)
        choices.waiting.append(state)

    def earliest(self) -> float | None:
        """When the first of them was made, in seconds of ``time.monotonic``; None if none was yet.

        vLLM tells it by the clock of the day, in this process, and where it keeps no statistics never.
        """
        stats = [state.stats for state in self._states if state.stats is not None]
        made = [
            each.arrival_time + each.first_token_latency
            for each in stats
            if each.num_generation_tokens
        ]
        return time.monotonic() - max(0.0, time.time() - min(made)) if made else None

    def counts(self, request_id: str) -> tuple[int, ...] | None:
        """Vision tokens that each layer sees of a prompt with adaptive cuts; None before its first token.

        ``request_id`` is that of admission. Of several choices, which differ by rounding at most, the first
        that is known.
        """
        if request_id not in self._choices:
            return None
        found = (getattr(state, _COUNTS, None) for state in self._choices[request_id].all)
        return next((counts for counts in found if counts is not None), None)

    def cached(self, request_id: str) -> int:
        """How many tokens of a prompt came from the prefix cache; 0 before its first token.

        ``request_id`` is that of admission. Of several choices the first to run may have cached it for
        the others, so the least counts.
        """
        return self._choices[request_id].cached() if request_id in self._choices else 0


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
    stock, process = OutputProcessor.add_request, OutputProcessor.process_outputs
    if getattr(stock, "vtr_first_tokens", False):
        return

    @functools.wraps(stock)
    def add_request(
        self: OutputProcessor, request: EngineCoreRequest, *args: Any, **kwargs: Any
    ) -> None:
        stock(self, request, *args, **kwargs)
        collector = _collector.get()
        if collector is not None:
            collector.add(self.request_states[request.request_id])

    @functools.wraps(process)
    def process_outputs(
        self: OutputProcessor,
        engine_core_outputs: list[EngineCoreOutput],
        *args: Any,
        **kwargs: Any,
    ) -> OutputProcessorOutput:
        for output in engine_core_outputs:
            if output.kv_transfer_params:
                counts = take_told(output)
                state = self.request_states.get(output.request_id)
                if counts is not None and state is not None:
                    setattr(state, _COUNTS, counts)
        return process(self, engine_core_outputs, *args, **kwargs)

    add_request.vtr_first_tokens = True
    OutputProcessor.add_request = add_request
    OutputProcessor.process_outputs = process_outputs
