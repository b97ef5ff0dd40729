"""Which vision tokens stayed at each cut, for the requests that ask to know.

Written in the step without waiting for the device, read when the trace is taken.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vtr_vllm.engine.common.request_view import TraceCuts
from vtr_vllm.reduction.batch import RequestCut
from vtr_vllm.reduction.request import Part

MAX_TRACES = 64
"""Traces held at a time; a new one takes the place of the oldest."""
MAX_TRACE_TOKENS = 16_384
"""A request with more vision tokens leaves no trace."""

_NUMBER = torch.int16  # holds MAX_TRACE_TOKENS - 1


@dataclass(frozen=True)
class _PartTrace:
    """What the cuts of one part left."""

    part: Part
    layers: Sequence[int]
    counts: Sequence[int]
    numbers: torch.Tensor
    """[sum of counts] numbers within the part, on the host, there once ``copied`` is complete."""
    copied: torch.cuda.Event | None

    def seen(self) -> list[tuple[int, list[int]]]:
        """(layer, vision tokens of the prompt that are seen from there on), by depth."""
        if self.copied is not None:
            self.copied.synchronize()
        first = self.part.first
        kept = (self.numbers.long() + first).split(list(self.counts))
        cuts = [(layer, tokens.tolist()) for layer, tokens in zip(self.layers, kept, strict=True)]
        return [(0, list(range(first, first + self.part.plan.n_vision))), *cuts]


class Traces:
    """The traces of one worker."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, dict[int, _PartTrace]] = OrderedDict()
        """By name, then by the part's first vision token."""
        self._step: dict[tuple[int, int], list[tuple[RequestCut, torch.Tensor]]] = {}
        """Request of the step, first vision token of the part -> its cuts so far, on the device."""

    def note(self, members: Sequence[RequestCut], vision: torch.Tensor) -> None:
        """Note what a cut left; ``vision`` [rows left] as ``Rows.vision`` is after the cut."""
        dropped = 0
        for cut in members:
            request = cut.request
            if request.trace is not None and len(request.vision) <= MAX_TRACE_TOKENS:
                first = cut.first_row - dropped
                seen = vision[first : first + cut.kept_rows]
                # How many stay is known here; asking which rows they are would wait.
                last = torch.where(seen >= 0, seen, MAX_TRACE_TOKENS).sort().values
                kept = last[: cut.kept_vision].to(_NUMBER)
                self._step.setdefault((cut.index, cut.part.first), []).append((cut, kept))
            dropped += cut.num_rows - cut.kept_rows

    def end_step(self) -> None:
        """Send what was noted to the host; a part that runs again is noted anew."""
        for noted in self._step.values():
            numbers = torch.cat([kept for _, kept in noted])
            host = numbers.to("cpu", non_blocking=True)
            copied = None
            if numbers.is_cuda:
                copied = torch.cuda.Event()
                copied.record()
            request, part = noted[0][0].request, noted[0][0].part
            assert request.trace is not None
            parts = self._held.setdefault(request.trace, {})
            for whole in request.parts:
                if not whole.plan.reduces:
                    parts[whole.first] = _PartTrace(whole, [], [], host[:0], None)
            layers = [cut.layer for cut, _ in noted]
            counts = [len(kept) for _, kept in noted]
            parts[part.first] = _PartTrace(part, layers, counts, host, copied)
            self._held.move_to_end(request.trace)
        self._step.clear()
        while len(self._held) > MAX_TRACES:
            self._held.popitem(last=False)

    def take(self, name: str) -> TraceCuts | None:
        """Hand out a trace and forget it; None when there is none, or no longer."""
        parts = self._held.pop(name, None)
        if parts is None:
            return None
        seen = [part.seen() for _, part in sorted(parts.items())]
        layers = sorted({layer for part in parts.values() for layer in part.layers})
        return [
            (layer, [token for part in seen for token in _last_before(part, layer)])
            for layer in layers
        ]


def _last_before(seen: Sequence[tuple[int, list[int]]], layer: int) -> list[int]:
    """What is seen at ``layer``, of what is seen from some layers on."""
    return next(tokens for first, tokens in reversed(seen) if first <= layer)
