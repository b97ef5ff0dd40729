"""The plan of one step: which rows each layer sees, where they are stored, what is cut.

Whole numbers only, known on the host before the forward pass, so that nothing here waits for the
device. A step's plan is built from the requests' durable facts (``ReducedRequest``), used once,
and thrown away. Symbols: R requests in the step, L decoder layers, N rows (tokens) of the step
before any cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vtr_vllm.reduction.request import IntArray, Phase, ReducedRequest
from vtr_vllm.schedules import RankRule


@dataclass(frozen=True)
class StepRequest:
    """One request of a step: positions [computed, computed + scheduled) are run."""

    computed: int
    scheduled: int
    reduced: ReducedRequest | None


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive layers of one band that see the same rows: one set of attention metadata."""

    first_layer: int
    end_layer: int
    band: int
    query_len: IntArray
    """[R] rows of each request."""
    seq_len: IntArray
    """[R] stored tokens of each request once this step is written."""

    @property
    def num_rows(self) -> int:
        return int(self.query_len.sum())

    @property
    def query_start(self) -> IntArray:
        """[R + 1] first row of each request, and the end."""
        return _starts(self.query_len)

    def storage(self) -> tuple[IntArray, IntArray]:
        """(request [rows], storage position [rows]) of every row, in row order."""
        request = np.repeat(np.arange(len(self.query_len)), self.query_len)
        first = self.seq_len - self.query_len - self.query_start[:-1]
        return request, np.arange(len(request)) + first[request]


@dataclass(frozen=True)
class RequestCut:
    """One request at one cut; rows are counted in the layout just before the cut."""

    index: int
    """Which request of the step."""
    request: ReducedRequest
    rule: RankRule
    computed: int
    """Tokens of the prompt that earlier steps, or the prefix cache, computed."""
    step_row: int
    """First row of the request in the step, before any cut."""
    first_row: int
    num_rows: int
    generated: int
    """Rows behind the prompt: a preempted request's own tokens, which never ask."""
    kept_rows: int
    """Rows that stay: all text and the best-ranked vision tokens."""
    floors: tuple[int, ...] | None = None
    """[images] vision tokens that each image keeps for sure; None: the best of all images stay."""

    @property
    def prompt_rows(self) -> int:
        return self.num_rows - self.generated

    @property
    def vision_rows(self) -> IntArray:
        """[n_vision] rows of the request's vision tokens in the step, before any cut."""
        return self.request.vision - self.computed + self.step_row


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The plan of one step in which at least one request is, or was, reduced."""

    num_rows: int
    """N."""
    segments: tuple[Segment, ...]
    cuts: dict[int, tuple[RequestCut, ...]]
    """Cut layer -> the requests that lose tokens before it. Empty: no row moves in this step."""
    vision: IntArray | None
    """[N] vision-token number within its request, -1 for text; None without cuts."""
    image: IntArray | None
    """[N] image number within its request, -1 for text; None where no cut has floors."""

    @property
    def rank_layers(self) -> frozenset[int]:
        """Layers whose queries and keys are needed: the one before each attention-ranked cut."""
        return frozenset(
            layer - 1
            for layer, members in self.cuts.items()
            if any(member.rule.needs_attention for member in members)
        )


def plan_batch(
    requests: Sequence[StepRequest], num_layers: int, band_starts: Sequence[int]
) -> BatchPlan | None:
    """Plan a step; None when every request runs as in stock vLLM.

    ``band_starts`` has the first layer of each band, ascending, starting with 0.
    """
    phases = [_phase(request) for request in requests]
    if all(phase is Phase.PREFIX for phase in phases):
        return None

    computed = np.array([r.computed for r in requests], dtype=np.int64)
    scheduled = np.array([r.scheduled for r in requests], dtype=np.int64)
    dropped = _dropped(requests, phases, num_layers)
    prefilling = np.array([phase is Phase.PREFILL for phase in phases], dtype=bool)
    # In a decode step the missing tokens were dropped before: only lengths shrink, no row goes.
    query_len = scheduled - np.where(prefilling, dropped, 0)
    seq_len = computed + scheduled - dropped

    segments = _segments(query_len, seq_len, dropped, band_starts)
    cuts = _cuts(requests, prefilling, query_len, scheduled)
    vision = image = None
    if cuts:
        vision = _numbers(requests, prefilling, scheduled, lambda r: np.arange(len(r.vision)))
    if any(cut.floors is not None for members in cuts.values() for cut in members):
        image = _numbers(requests, prefilling, scheduled, lambda r: r.image_of)
    return BatchPlan(int(scheduled.sum()), segments, cuts, vision, image)


def dropped_tokens(requests: Sequence[StepRequest], num_layers: int) -> IntArray:
    """[layers, R] tokens that each layer does not store of each request once the step is written."""
    return _dropped(requests, [_phase(request) for request in requests], num_layers)


def _dropped(requests: Sequence[StepRequest], phases: Sequence[Phase], num_layers: int) -> IntArray:
    dropped = np.zeros((num_layers, len(requests)), dtype=np.int64)
    for i, (request, phase) in enumerate(zip(requests, phases, strict=True)):
        if request.reduced is not None and phase is not Phase.PREFIX:
            dropped[:, i] = request.reduced.dropped
    return dropped


def _phase(request: StepRequest) -> Phase:
    if request.reduced is None:
        return Phase.PREFIX
    return request.reduced.phase(request.computed, request.scheduled)


def _segments(
    query_len: IntArray, seq_len: IntArray, dropped: IntArray, band_starts: Sequence[int]
) -> tuple[Segment, ...]:
    num_layers = len(dropped)
    changes = 1 + np.flatnonzero((dropped[1:] != dropped[:-1]).any(axis=1))
    first_layers = sorted({*band_starts, *changes.tolist()})
    bands = np.searchsorted(np.asarray(band_starts), first_layers, side="right") - 1
    return tuple(
        Segment(first, end, int(band), query_len[first], seq_len[first])
        for first, end, band in zip(
            first_layers, [*first_layers[1:], num_layers], bands, strict=True
        )
    )


def _cuts(
    requests: Sequence[StepRequest],
    prefilling: np.ndarray,
    query_len: IntArray,
    scheduled: IntArray,
) -> dict[int, tuple[RequestCut, ...]]:
    cuts: dict[int, list[RequestCut]] = {}
    for i in np.flatnonzero(prefilling).tolist():
        request = requests[i].reduced
        assert request is not None
        for layer, rule in zip(request.plan.cuts, request.plan.rules, strict=True):
            before = query_len[layer - 1] if layer else scheduled
            cut = RequestCut(
                index=i,
                request=request,
                rule=rule,
                computed=requests[i].computed,
                step_row=int(scheduled[:i].sum()),
                first_row=int(before[:i].sum()),
                num_rows=int(before[i]),
                generated=requests[i].computed + requests[i].scheduled - request.prompt_len,
                kept_rows=int(query_len[layer][i]),
                floors=request.floors(request.plan.counts[layer]),
            )
            cuts.setdefault(layer, []).append(cut)
    return {layer: tuple(members) for layer, members in cuts.items()}


def _numbers(
    requests: Sequence[StepRequest],
    prefilling: np.ndarray,
    scheduled: IntArray,
    of: Callable[[ReducedRequest], IntArray],
) -> IntArray:
    """[N] what ``of`` says of each vision token of the requests that are cut; -1 elsewhere."""
    row_start = _starts(scheduled)
    numbers = np.full(row_start[-1], -1, dtype=np.int64)
    for i in np.flatnonzero(prefilling).tolist():
        request = requests[i].reduced
        assert request is not None
        rows = request.vision - requests[i].computed + row_start[i]
        numbers[rows] = of(request)
    return numbers


def _starts(lengths: IntArray) -> IntArray:
    return np.concatenate(([0], np.cumsum(lengths)))
