"""Which vision tokens stayed at each cut, for the requests that ask to know.

Written in the step without waiting for the device, read when the trace is taken.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vtr_vllm.engine.common.request_view import TraceCuts
from vtr_vllm.reduction.batch import RequestCut

MAX_TRACES = 64
"""Traces held at a time; a new one takes the place of the oldest."""
MAX_TRACE_TOKENS = 16_384
"""A request with more vision tokens leaves no trace."""

_NUMBER = torch.int16  # holds MAX_TRACE_TOKENS - 1


@dataclass(frozen=True)
class _Trace:
    layers: Sequence[int]
    counts: Sequence[int]
    numbers: torch.Tensor
    """[sum of counts] on the host, there once ``copied`` is complete."""
    copied: torch.cuda.Event | None


class Traces:
    """The traces of one worker."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, _Trace] = OrderedDict()
        self._step: dict[int, list[tuple[RequestCut, int, torch.Tensor]]] = {}
        """Request of the step -> its cuts so far, on the device."""

    def note(self, layer: int, members: Sequence[RequestCut], vision: torch.Tensor) -> None:
        """Note what a cut left; ``vision`` [rows left] as ``Rows.vision`` is after the cut."""
        dropped = 0
        for cut in members:
            plan = cut.request.plan
            if cut.request.trace is not None and plan.n_vision <= MAX_TRACE_TOKENS:
                first = cut.first_row - dropped
                seen = vision[first : first + cut.kept_rows]
                # How many stay is known here; asking which rows they are would wait.
                last = torch.where(seen >= 0, seen, MAX_TRACE_TOKENS).sort().values
                kept = last[: plan.counts[layer]].to(_NUMBER)
                self._step.setdefault(cut.index, []).append((cut, layer, kept))
            dropped += cut.num_rows - cut.kept_rows

    def end_step(self) -> None:
        """Send what was noted to the host; a request that runs its range again is noted anew."""
        for noted in self._step.values():
            numbers = torch.cat([kept for _, _, kept in noted])
            host = numbers.to("cpu", non_blocking=True)
            copied = None
            if numbers.is_cuda:
                copied = torch.cuda.Event()
                copied.record()
            name = noted[0][0].request.trace
            assert name is not None
            self._held[name] = _Trace(
                [layer for _, layer, _ in noted], [len(kept) for _, _, kept in noted], host, copied
            )
            self._held.move_to_end(name)
        self._step.clear()
        while len(self._held) > MAX_TRACES:
            self._held.popitem(last=False)

    def take(self, name: str) -> TraceCuts | None:
        """Hand out a trace and forget it; None when there is none, or no longer."""
        trace = self._held.pop(name, None)
        if trace is None:
            return None
        if trace.copied is not None:
            trace.copied.synchronize()
        parts = trace.numbers.split(list(trace.counts))
        return [(layer, part.tolist()) for layer, part in zip(trace.layers, parts, strict=True)]
