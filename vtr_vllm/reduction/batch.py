"""The plan of one step: which rows each layer sees, where they are stored, what is cut.

Whole numbers only, known on the host before the forward pass, so that nothing here waits for the
device. A step's plan is built from the requests' durable facts (``ReducedRequest``), used once,
and thrown away. Symbols: R requests in the step, L decoder layers, N rows (tokens) of the step
before any cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vtr_vllm.ranking import Need
from vtr_vllm.reduction.request import IntArray, Part, ReducedRequest
from vtr_vllm.schedules import RankRule


@dataclass(frozen=True)
class StepRequest:
    """One request of a step: positions [computed, computed + scheduled) are run."""

    computed: int
    scheduled: int
    reduced: ReducedRequest | None
    name: str = ""
    """The engine's id of it."""


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
    """One part of a request at one cut; rows are counted in the layout just before the cut.

    It covers the rows of the part; of a request that is guided by its question, all of the step.
    """

    index: int
    """Which request of the step."""
    request: ReducedRequest
    part: Part
    layer: int
    rule: RankRule
    position: int
    """The position in the prompt of the first row, before any cut."""
    stored: int
    """Tokens that the layer before the cut stores of the request before the first row: earlier steps,
    or the prefix cache, or rows of this step computed them."""
    step_row: int
    """The first row in the step, before any cut."""
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
    def kept_vision(self) -> int:
        """Rows of vision tokens that stay."""
        return self.part.plan.counts[self.layer]

    @property
    def vision_before(self) -> int:
        """Rows of vision tokens before the cut."""
        plan = self.part.plan
        return plan.counts[self.layer - 1] if self.layer else plan.n_vision

    @property
    def vision_rows(self) -> IntArray:
        """[n_vision] rows of the part's vision tokens in the step, before any cut."""
        return self.part.vision - self.position + self.step_row


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The plan of one step in which at least one request is, or was, reduced."""

    scheduled: IntArray
    """[R] rows of each request before any cut."""
    segments: tuple[Segment, ...]
    cuts: dict[int, tuple[RequestCut, ...]]
    """Cut layer -> the requests that lose tokens before it, or may. Empty: no row moves in this step."""
    vision: IntArray | None
    """[N] vision-token number within its part, -1 for text; None without cuts."""
    image: IntArray | None
    """[N] image number within its part, -1 for text; None where no cut has floors."""
    requests: Sequence[StepRequest] = ()
    band_starts: Sequence[int] = ()

    def with_counts(self, layer: int, counts: Mapping[int, int]) -> "BatchPlan":
        """The plan once requests are known to keep so many vision tokens before ``layer``.

        ``counts``: by the place of a request in the step, none above what it may keep. Nothing changes before
        ``layer``.
        """
        requests = list(self.requests)
        for index, count in counts.items():
            request = requests[index]
            assert request.reduced is not None
            known = request.reduced.plan.with_count(layer, count)
            requests[index] = replace(request, reduced=request.reduced.with_plan(known))
        plan = plan_batch(requests, self.segments[-1].end_layer, self.band_starts)
        assert plan is not None, "a cut is still to come, or was made"
        return plan

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.scheduled.sum())

    @cached_property
    def rank_layers(self) -> frozenset[int]:
        """Layers whose queries and keys are needed: the one before each attention-ranked cut."""
        return frozenset(
            layer - 1
            for layer, members in self.cuts.items()
            if any(member.rule.needs_attention for member in members)
        )

    @cached_property
    def inside_layers(self) -> frozenset[int]:
        """The cuts that can be made behind the attention of the layer before.

        All but those before the first layer, and those that look at what comes out of that layer, or
        change it.
        """
        return frozenset(
            layer
            for layer, members in self.cuts.items()
            if layer > 0 and not any(_wants_states(member.rule) for member in members)
        )


def _wants_states(rule: RankRule) -> bool:
    return Need.STATES in rule.needs or bool(rule.merge)


def plan_batch(
    requests: Sequence[StepRequest], num_layers: int, band_starts: Sequence[int]
) -> BatchPlan | None:
    """Plan a step; None when every request runs as in stock vLLM.

    ``band_starts`` has the first layer of each band, ascending, starting with 0.
    """
    parts = [_parts(request) for request in requests]
    if not any(behind for _, behind in parts):
        return None

    computed = np.array([r.computed for r in requests], dtype=np.int64)
    scheduled = np.array([r.scheduled for r in requests], dtype=np.int64)
    # What earlier steps dropped is missing from storage alone: only lengths shrink, no row goes.
    before = _dropped(requests, [done for done, _ in parts], num_layers)
    behind = _dropped(requests, [done for _, done in parts], num_layers)
    query_len = scheduled - (behind - before)
    seq_len = computed + scheduled - behind

    segments = _segments(query_len, seq_len, band_starts)
    cuts = _cuts(requests, parts, query_len, scheduled)
    vision = image = None
    if cuts:
        vision = _numbers(requests, parts, scheduled, lambda part: np.arange(part.plan.n_vision))
    if any(cut.floors is not None for members in cuts.values() for cut in members):
        image = _numbers(
            requests,
            parts,
            scheduled,
            lambda part: np.repeat(range(len(part.units)), part.image_sizes),
        )
    return BatchPlan(scheduled, segments, cuts, vision, image, requests, band_starts)


def dropped_tokens(requests: Sequence[StepRequest], num_layers: int) -> IntArray:
    """[layers, R] tokens that each layer does not store of each request once the step is written."""
    return _dropped(requests, [_parts(request)[1] for request in requests], num_layers)


def _dropped(requests: Sequence[StepRequest], done: Sequence[int], num_layers: int) -> IntArray:
    """[layers, R] of the first ``done`` parts of each request."""
    dropped = np.zeros((num_layers, len(requests)), dtype=np.int64)
    for i, (request, parts) in enumerate(zip(requests, done, strict=True)):
        if request.reduced is not None and parts:
            dropped[:, i] = request.reduced.dropped_by[parts]
    return dropped


def _parts(request: StepRequest) -> tuple[int, int]:
    """How many parts are done before the step, and behind it."""
    if request.reduced is None:
        return 0, 0
    return request.reduced.parts_of_step(request.computed, request.scheduled)


def _segments(
    query_len: IntArray, seq_len: IntArray, band_starts: Sequence[int]
) -> tuple[Segment, ...]:
    num_layers = len(query_len)
    changes = (query_len[1:] != query_len[:-1]) | (seq_len[1:] != seq_len[:-1])
    first_layers = sorted({*band_starts, *(1 + np.flatnonzero(changes.any(axis=1))).tolist()})
    bands = np.searchsorted(np.asarray(band_starts), first_layers, side="right") - 1
    return tuple(
        Segment(first, end, int(band), query_len[first], seq_len[first])
        for first, end, band in zip(
            first_layers, [*first_layers[1:], num_layers], bands, strict=True
        )
    )


def _cuts(
    requests: Sequence[StepRequest],
    parts: Sequence[tuple[int, int]],
    query_len: IntArray,
    scheduled: IntArray,
) -> dict[int, tuple[RequestCut, ...]]:
    cuts: dict[int, list[RequestCut]] = {}
    row_start = {-1: _starts(scheduled)}
    for i, (done, behind) in enumerate(parts):
        if done == behind:
            continue
        request = requests[i]
        reduced = request.reduced
        assert reduced is not None
        for number in range(done, behind):
            plan = reduced.parts[number].plan
            for layer, rule in zip(plan.cuts, plan.rules, strict=True):
                if layer - 1 not in row_start:
                    row_start[layer - 1] = _starts(query_len[layer - 1])
                first = int(row_start[-1][i]), int(row_start[layer - 1][i])
                cut = _request_cut(request, i, (done, number), layer, rule, first)
                cuts.setdefault(layer, []).append(cut)
    return {layer: tuple(members) for layer, members in sorted(cuts.items())}


def _request_cut(
    request: StepRequest,
    index: int,
    parts: tuple[int, int],
    layer: int,
    rule: RankRule,
    first: tuple[int, int],
) -> RequestCut:
    """``parts``: how many were done before the step, and which is cut. ``first``: the request's first
    row in the step, before any cut and before this one."""
    reduced = request.reduced
    assert reduced is not None
    done, number = parts
    part, plan = reduced.parts[number], reduced.parts[number].plan
    end = request.computed + request.scheduled
    begin = part.start if reduced.is_local else request.computed
    rows = (part.end if reduced.is_local else end) - begin
    # Those of the layer before the cut; nothing is dropped before layer 0.
    gone = reduced.dropped_by[:, layer - 1] if layer else np.zeros(number + 1, dtype=np.int64)
    return RequestCut(
        index=index,
        request=reduced,
        part=part,
        layer=layer,
        rule=rule,
        position=begin,
        stored=begin - int(gone[number]),
        step_row=first[0] + begin - request.computed,
        first_row=first[1] + begin - request.computed - int(gone[number] - gone[done]),
        num_rows=rows - (plan.dropped(layer - 1) if layer else 0),
        generated=0 if reduced.is_local else end - reduced.prompt_len,
        kept_rows=rows - plan.dropped(layer),
        floors=reduced.floors(plan.counts[layer]),
    )


def _numbers(
    requests: Sequence[StepRequest],
    parts: Sequence[tuple[int, int]],
    scheduled: IntArray,
    of: Callable[[Part], IntArray],
) -> IntArray:
    """[N] what ``of`` says of each vision token of the parts that are cut; -1 elsewhere."""
    row_start = _starts(scheduled)
    numbers = np.full(row_start[-1], -1, dtype=np.int64)
    for i, (done, behind) in enumerate(parts):
        for number in range(done, behind):
            reduced = requests[i].reduced
            assert reduced is not None
            part = reduced.parts[number]
            numbers[part.vision - requests[i].computed + row_start[i]] = of(part)
    return numbers


def _starts(lengths: IntArray) -> IntArray:
    return np.concatenate(([0], np.cumsum(lengths)))
