"""Which vision tokens stay: what a trace says, how long it is held, and that it is true."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.model import ReferenceLlava
from tests.vtr_vllm.engine.conftest import Engines
from tests.vtr_vllm.engine.scheduler.test_scheduler import (
    HALF,
    QUARTER,
    SMALL_CACHE,
    reduced,
    scheduler,
)
from tests.vtr_vllm.engine.support import Case, picture, words
from tests.vtr_vllm.engine.worker.test_decoder import ONE_SHOT, cases, planned, reference_run
from tests.vtr_vllm.reduction.scores import scores_by
from tests.vtr_vllm.reduction.strategies import LAYERS, band_lists, request_of, steps
from vtr_vllm.engine.frontend.engine_queries import take_trace
from vtr_vllm.engine.worker.trace import MAX_TRACE_TOKENS, MAX_TRACES, Traces
from vtr_vllm.reduction.batch import BatchPlan, StepRequest, plan_batch
from vtr_vllm.reduction.gather import Rows

CPU = torch.device("cpu")


def run_cuts(plan: BatchPlan, traces: Traces, seed: int = 0) -> dict[int, list[Any]]:
    """Cut as the decoder does, with drawn scores; by request what a look at the rows finds."""
    draw = torch.Generator().manual_seed(seed)
    rows = Rows(plan, CPU)
    found: dict[int, list[Any]] = {}
    for layer, members in sorted(plan.cuts.items()):
        drawn = scores_by(lambda cut, _: torch.rand(cut.num_rows, generator=draw), rows, members)
        rows.cut(members, drawn)
        traces.note(members, rows.vision)
        for index, seen in seen_by_request(plan, rows).items():
            if any(cut.index == index for cut in members):
                found.setdefault(index, []).append((layer, seen))
    traces.end_step()
    return found


def seen_by_request(plan: BatchPlan, rows: Rows) -> dict[int, list[int]]:
    """Vision tokens of each request that are left, of parts that this step cuts or nobody does."""
    parts = {
        cut.index: {
            p.first: p for p in cut.request.parts if not p.plan.reduces or not cut.request.is_local
        }
        for members in plan.cuts.values()
        for cut in members
    }
    left = rows.original.numpy()
    kept: dict[int, dict[int, list[int]]] = {
        index: {first: [*range(first, first + p.plan.n_vision)] for first, p in whole.items()}
        for index, whole in parts.items()
    }
    for members in plan.cuts.values():
        for cut in members:
            there = np.flatnonzero(np.isin(cut.vision_rows, left)) + cut.part.first
            kept[cut.index][cut.part.first] = there.tolist()
    return {i: [n for _, part in sorted(of.items()) for n in part] for i, of in kept.items()}


def named(step: list[StepRequest], prefix: str = "") -> list[StepRequest]:
    return [
        replace(one, reduced=one.reduced and replace(one.reduced, trace=f"{prefix}{i}"))
        for i, one in enumerate(step)
    ]


@given(steps, band_lists, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_a_trace_says_what_the_rows_say(step: Any, bands: Any, seed: int) -> None:
    plan = plan_batch(named(step), LAYERS, bands)
    if plan is None or not plan.cuts:
        return
    traces = Traces()
    found = run_cuts(plan, traces, seed)
    for i in range(len(step)):
        assert traces.take(str(i)) == found.get(i)
        assert traces.take(str(i)) is None, "handed out once"


def prefill(trace: str | None, tokens: int = 6) -> BatchPlan:
    request = request_of([range(1, 1 + tokens)], tokens + 2, [1, 0.5, 0.5], ["random"])
    plan = plan_batch([StepRequest(0, tokens + 2, replace(request, trace=trace))], 3, (0,))
    assert plan is not None
    return plan


def test_nothing_is_kept_unasked() -> None:
    traces = Traces()
    run_cuts(prefill(None), traces)
    assert not traces._held


def test_a_second_prefill_replaces_the_first() -> None:
    traces = Traces()
    first = run_cuts(prefill("a"), traces, seed=1)
    second = run_cuts(prefill("a"), traces, seed=2)
    assert first != second
    assert traces.take("a") == second[0]


def test_the_oldest_goes_first() -> None:
    traces = Traces()
    for i in range(MAX_TRACES):
        run_cuts(prefill(str(i)), traces)
    run_cuts(prefill("0"), traces)
    run_cuts(prefill("new"), traces)
    assert len(traces._held) == MAX_TRACES
    assert traces.take("1") is None
    assert traces.take("0") is not None
    assert traces.take("new") is not None


def test_as_many_tokens_as_allowed_and_one_more() -> None:
    traces = Traces()
    most = run_cuts(prefill("most", MAX_TRACE_TOKENS), traces, seed=3)[0]
    assert traces.take("most") == most
    assert max(most[0][1]) > MAX_TRACE_TOKENS - 50
    run_cuts(prefill("more", MAX_TRACE_TOKENS + 1), traces)
    assert traces.take("more") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_trace_crosses_from_the_device() -> None:
    plan, traces = prefill("a"), Traces()
    rows = Rows(plan, torch.device("cuda"))
    rows.cut(plan.cuts[1], torch.arange(8.0, device="cuda")[None])
    torch.cuda.set_sync_debug_mode("error")
    try:
        traces.note(plan.cuts[1], rows.vision)
        traces.end_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert traces.take("a") == [(1, [3, 4, 5])]


def taken(llm: Any, batch: list[Case], max_tokens: int = 2) -> list[Any]:
    """Run ``batch`` and take the trace of each."""
    asked = [replace(case, trace=f"trace {i}") for i, case in enumerate(batch)]
    llm.generate([c.prompt for c in asked], [c.params(max_tokens) for c in asked], use_tqdm=False)
    return [asyncio.run(take_trace(llm.llm_engine, str(case.trace))) for case in asked]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceLlava:
    return ReferenceLlava(checkpoint)


@pytest.mark.engine
@pytest.mark.both_runners
@ONE_SHOT
@given(batch=st.lists(cases(), min_size=2, max_size=4))
def test_a_trace_equals_what_the_reference_keeps(
    batch: list[Case], engines: Engines, checkpoint: Path, reference: ReferenceLlava
) -> None:
    """Counts as planned, each set within the one before, and the very tokens."""
    for case, trace in zip(batch, taken(engines.get(model=checkpoint), batch), strict=True):
        plan, _ = planned(case)
        if not plan.reduces:
            assert trace is None
            continue
        assert [(layer, len(kept)) for layer, kept in trace] == [
            (layer, plan.counts[layer]) for layer in plan.cuts
        ]
        before = set(range(plan.n_vision))
        for _, kept in trace:
            assert kept == sorted(set(kept))
            assert set(kept) <= before
            before = set(kept)
        wanted = reference_run(reference, case, []).cuts
        for layer, kept in trace:
            cut = wanted[layer]
            if cut.margin <= 1e-5 * np.nanmax(np.abs(cut.scores.numpy())):
                break  # a tie but for rounding: either choice is right, and what follows from it
            assert kept == cut.kept.tolist(), (case.keep, case.rules, layer)


@pytest.mark.engine
def test_full_budget_and_text_leave_no_trace(engines: Engines, checkpoint: Path) -> None:
    batch = [
        Case(f"{words(5, 12)}<image>{words(6, 9)}", (picture(3),)),
        Case(words(7, 60)),
        replace(reduced(words(8, 20), 1, QUARTER), images=()),
    ]
    assert taken(engines.get(model=checkpoint), batch) == [None] * 3


@pytest.mark.engine
def test_a_preempted_request_leaves_the_trace_of_a_quiet_one(
    engines: Engines, checkpoint: Path
) -> None:
    pool = [
        reduced(f"{words(1, 30)}<image>{words(2, 9)}", 1),
        reduced(f"{words(3, 8)}<image>{words(4, 30)}", 2, HALF),
        reduced(f"{words(3, 8)}<image>{words(4, 9)}", 3, (1.0, 1.0) + (0.5,) * 6),
    ]
    llm = engines.get(model=checkpoint, num_gpu_blocks_override=60, **SMALL_CACHE)
    alone = [taken(llm, [case])[0] for case in pool]
    preempted = []
    stock = scheduler(llm)._preempt_request

    def noted(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.num_output_tokens)
        stock(request, *args, **kwargs)

    scheduler(llm)._preempt_request = noted
    try:
        assert taken(llm, pool * 4, max_tokens=60) == alone * 4
    finally:
        scheduler(llm)._preempt_request = stock
    assert any(preempted), "none was preempted after its first token"
