"""Cuts whose counts the model finds: against the reference, beside neighbours, and over time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.model import ReferenceLlava
from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.scheduler.test_scheduler import SMALL_CACHE, scheduler
from tests.vtr_vllm.engine.support import (
    BLOCK,
    Case,
    logits,
    note_preemptions,
    picture,
    tokens,
    words,
)
from vtr_vllm.engine.frontend.first_tokens import collect_first_tokens
from vtr_vllm.engine.worker.adaptive_cuts import AdaptiveCounts
from vtr_vllm.reduction.batch import StepRequest, plan_batch
from vtr_vllm.schedules import Plan, RankRule, make_plan

pytestmark = [pytest.mark.engine, pytest.mark.both_runners]

V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
TOKENS = 4 if V2 else 16
TOLERANCE = 1e-3
MOST = (1.0, 1.0, *[0.9] * 3, *[0.6] * 3)
NO_BOUND = (1.0, 1.0, *[0.9999] * 3, *[0.9998] * 3)


def case(seed: int, *rules: str, keep: tuple[float, ...] = MOST, images: int = 1) -> Case:
    shown = "".join(f"<image>{words(seed + place, 5)}" for place in range(images))
    text = f"{words(seed, 9 + seed)}{shown}{words(seed + 7, 20)}"
    return Case(text, tuple(picture(seed + place) for place in range(images)), keep, rules)


def batch() -> list[Case]:
    """Every kind of adaptive cut, with neighbours that have none."""
    return [
        case(1, "last@0.5", "last@0.3"),
        case(2, "last@0.5", "previous", images=3),
        case(3, "last", "instruction@0.4"),
        case(4, "last-norope-max@0.2", "instruction"),
        case(5, "instruction:9032@0.6+nearest", "last+nearest"),
        case(6, "last@0.9999", "last@0.5"),  # the first keeps all that it may
        case(7, "last@0.1", "last"),  # the second has nothing left to drop
        case(8, "last", "last"),
        case(9, "last@0.3", "last@0.3"),  # the second may keep more than there is
        case(10, "last@0.5", "instruction@0.5", keep=NO_BOUND),
        Case(f"<image>{words(6, 9)}", (picture(3),), (1.0,) * LAYERS),
        Case(words(9, 30)),
    ]


def run(
    llm: Any, cases: list[Case], max_tokens: int, **options: Any
) -> tuple[list[Any], list[tuple[int, ...] | None]]:
    """(outputs, counts that the front end was told), by case."""
    before = int(llm.request_counter.counter)
    with collect_first_tokens() as first:
        outputs = llm.generate(
            [case.prompt for case in cases],
            [case.params(max_tokens, **options) for case in cases],
            use_tqdm=False,
        )
    return outputs, [first.counts(str(before + place)) for place in range(len(cases))]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceLlava:
    return ReferenceLlava(checkpoint)


def bound_of(each: Case) -> Plan:
    """The most that may stay."""
    rules = [RankRule.parse(rule) for rule in each.rules]
    return make_plan(each.keep or (1.0,) * LAYERS, rules, SHAPE.vision_tokens * len(each.images))


def test_counts_and_tokens_equal_the_reference(
    engines: Engines, checkpoint: Path, reference: ReferenceLlava
) -> None:
    """A mixed batch: the same counts, and every logit within 1e-3 of the largest."""
    cases = batch()[::2] if V2 else batch()
    outputs, told = run(engines.get(model=checkpoint), cases, TOKENS, logprobs=-1)
    for each, output, counts in zip(cases, outputs, told, strict=True):
        if not each.images:
            assert counts is None
            continue
        plan = bound_of(each)
        want = reference.run(
            reference.prompt_token_ids(each.text),
            list(each.images),
            list(plan.counts),
            {layer: str(rule) for layer, rule in zip(plan.cuts, plan.rules, strict=True)},
            list(output.outputs[0].token_ids)[:-1],
        )
        got, logits_wanted = logits(output, SHAPE.vocab), want.logits.numpy()
        largest = np.abs(logits_wanted).max()
        assert np.abs(got - logits_wanted).max() <= TOLERANCE * largest, each.rules
        if not plan.is_adaptive:
            assert counts is None
            continue
        assert counts is not None
        assert counts[:2] == plan.counts[:2]
        kept = {layer: len(cut.kept) for layer, cut in want.cuts.items()}
        assert {layer: counts[layer] for layer in kept} == kept, each.rules
        assert plan.with_counts(counts).counts == counts


def test_counts_known_beforehand_give_the_same(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    adaptive = [case(1, "last@0.5", "last@0.3"), case(2, "last@0.5", "previous")]
    outputs, told = run(llm, adaptive, TOKENS, logprobs=-1)
    plain = []
    for each, counts in zip(adaptive, told, strict=True):
        assert counts is not None
        keep = tuple(count / SHAPE.vision_tokens for count in counts)
        rules = tuple(str(rule) for rule in bound_of(each).settled(counts).rules)
        plain.append(Case(each.text, each.images, keep, rules))
    expected, nothing = run(llm, plain, TOKENS, logprobs=-1)
    assert nothing == [None, None]
    assert tokens(outputs) == tokens(expected)
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(
            logits(one, SHAPE.vocab), logits(other, SHAPE.vocab), rtol=1e-4, atol=1e-4
        )


@pytest.mark.skipif(V2, reason="a long answer takes long in Triton's interpreter")
def test_the_answer_fills_what_the_cut_left_empty(engines: Engines, checkpoint: Path) -> None:
    """No block is allocated before those of the schedule's bound are full; all come back."""
    llm = engines.get(model=checkpoint)
    engine, kv = llm.llm_engine, scheduler(llm).kv_cache_manager
    free = kv.block_pool.get_num_free_blocks()
    each = case(1, "last@0.2", "last@0.1", keep=(1.0, 1.0, *[0.95] * 3, *[0.9] * 3))
    before = int(llm.request_counter.counter)
    with collect_first_tokens() as first:
        engine.add_request(str(before), each.prompt, each.params(3 * BLOCK))
        held = []
        while engine.has_unfinished_requests():
            engine.step()
            for request in scheduler(llm).running:
                blocks = [
                    len(manager.req_to_blocks[request.request_id])
                    for manager in kv.coordinator.single_type_managers
                ]
                held.append((request.num_computed_tokens, blocks))
    counts = first.counts(str(before))
    assert counts is not None
    assert max(counts[2:]) < 0.5 * SHAPE.vision_tokens
    bound = held[0][1]
    bands = scheduler(llm)._layer_bands.starts
    for computed, blocks in held[2:]:
        for band, first_layer in enumerate(bands):
            stored = computed - SHAPE.vision_tokens + counts[first_layer]
            assert blocks[band] == max(bound[band], -(-stored // BLOCK)), (band, computed)
    assert kv.block_pool.get_num_free_blocks() == free


@pytest.mark.skipif(V2, reason="many long answers take long in Triton's interpreter")
def test_preempted_requests_are_counted_anew(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    cases = [case(seed, "last@0.4", "last@0.4") for seed in range(1, 9)]
    alone = [run(llm, [each], 60) for each in cases]
    small = engines.get(model=checkpoint, num_gpu_blocks_override=90, **SMALL_CACHE)
    preempted = note_preemptions(small)
    outputs, told = run(small, cases, 60)
    assert preempted
    assert tokens(outputs) == [tokens(output)[0] for output, _ in alone]
    assert told == [counts[0] for _, counts in alone]
    assert None not in told
    assert not scheduler(small)._as_asked


def step_of(reduced: Any, computed: int, scheduled: int) -> StepRequest:
    return StepRequest(computed, scheduled, reduced, "a")


def test_what_was_found_holds_for_later_steps_alone() -> None:
    from tests.vtr_vllm.reduction.strategies import request_of

    asked = request_of([range(2, 12)], 14, [1, 1, 0.8, 0.8], ["last@0.5"])
    plan = plan_batch([step_of(asked, 0, 14)], 4, [0])
    assert plan is not None
    counts = AdaptiveCounts()
    counts.note(plan.with_counts(2, {0: 3}))
    assert counts.take_untold() == {"a": (10, 10, 3, 3)}
    assert counts.take_untold() == {}
    found = counts.known("a", 14, asked)
    assert found is not None
    assert found.plan.counts == (10, 10, 3, 3)
    assert counts.known("a", 0, asked) is asked, "it runs again"
    assert counts.known("b", 20, None) is None
    counts.forget("a")
    with pytest.raises(KeyError):
        counts.known("a", 14, asked)
