"""The scheduler process: whole ranges, freed blocks, no wrong prefix-cache hit, preemption."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.request import RequestStatus

from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.support import (
    BLOCK,
    Case,
    logits,
    note_preemptions,
    picture,
    tokens,
    words,
)
from tests.vtr_vllm.reduction.strategies import request_of
from vtr_vllm.engine.frontend.engine_queries import greet
from vtr_vllm.engine.scheduler.scheduler import Scheduler
from vtr_vllm.errors import ConfigurationError

pytestmark = pytest.mark.engine

QUARTER = (1.0, 1.0, 0.25, 0.25, 0.125, 0.125, 0.0, 0.0)
HALF = (0.5,) * 8
FULL = (1.0,) * 8
SMALL_CACHE = {"max_num_seqs": 16, "max_model_len": 192}


def reduced(text: str, image: int, keep: tuple[float, ...] = QUARTER) -> Case:
    cuts = sum(b < a for a, b in zip((1.0, *keep), keep, strict=False))
    rules = ("saliency",) + ("last",) * (cuts - 1) if keep[0] < 1 else ("last",) * cuts
    return Case(text, (picture(image),), keep, rules)


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def generate(llm: Any, cases: list[Case], max_tokens: int = 8) -> list[list[int]]:
    prompts = [case.prompt for case in cases]
    params = [case.params(max_tokens) for case in cases]
    return tokens(llm.generate(prompts, params, use_tqdm=False))


def run_steps(llm: Any, cases: list[Case], max_tokens: int) -> list[dict[str, list[int]]]:
    """Run to the end; before each step's output, the blocks of every request in every band."""
    engine = llm.llm_engine
    for i, case in enumerate(cases):
        engine.add_request(str(i), case.prompt, case.params(max_tokens))
    steps = []
    managers = scheduler(llm).kv_cache_manager.coordinator.single_type_managers
    while engine.has_unfinished_requests():
        held = {}
        engine.step()
        for request in scheduler(llm).running:
            blocks = [len(m.req_to_blocks.get(request.request_id, ())) for m in managers]
            held[request.request_id] = [request.num_computed_tokens, *blocks]
        steps.append(held)
    return steps


def test_blocks_held_equal_the_formula_at_every_step(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    cases = [
        reduced(f"{words(1, 5)}<image>{words(2, 9)}", 1),
        reduced(f"{words(3, 70)}<image>{words(4, 3)}", 2, HALF),
        Case(f"{words(5, 40)}<image>{words(6, 9)}", (picture(3),)),
        Case(words(7, 90)),
    ]
    keeps = [case.keep if case.images and case.keep else (1.0,) * LAYERS for case in cases]
    bands = len(scheduler(llm).kv_cache_manager.coordinator.single_type_managers)
    per_band = LAYERS // bands
    free = scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks()
    seen = 0
    for held in run_steps(llm, cases, max_tokens=40):
        for request_id, (computed, *blocks) in held.items():
            index = int(request_id.split("-")[0])
            n = SHAPE.vision_tokens * len(cases[index].images)
            kept = [int(np.floor(keeps[index][band * per_band] * n + 0.5)) for band in range(bands)]
            stored = [computed - (n - k) for k in kept]
            assert blocks == [-(-tokens // BLOCK) for tokens in stored], (request_id, computed)
            seen += 1
    assert seen > 100
    assert scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks() == free
    assert not scheduler(llm).reduced


def test_no_wrong_prefix_hit(engines: Engines, checkpoint: Path) -> None:
    """Every order of related requests gives the tokens that each has on a cold cache."""
    llm = engines.get(model=checkpoint)
    prefix = words(1, 2 * BLOCK + 5)
    cases = [
        Case(f"{prefix}<image>{words(2, 40)}", (picture(1),)),
        reduced(f"{prefix}<image>{words(2, 40)}", 1),
        reduced(f"{prefix}<image>{words(2, 40)}", 1, HALF),
        reduced(f"{prefix}<image>{words(3, 40)}", 1),
        reduced(f"{prefix}<image>{words(2, 40)}", 2),
        Case(f"{prefix}{words(4, 40)}"),
    ]
    cold = []
    for case in cases:
        llm.reset_prefix_cache()
        cold += generate(llm, [case])
    rng = np.random.default_rng(0)
    for _ in range(4):
        llm.reset_prefix_cache()
        for index in [*rng.permutation(len(cases)), *rng.permutation(len(cases))]:
            assert generate(llm, [cases[index]]) == [cold[index]], index


def test_prefix_is_shared_up_to_the_first_image(engines: Engines, checkpoint: Path) -> None:
    llm = engines.get(model=checkpoint)
    text = f"{words(1, 3 * BLOCK + 5)}<image>{words(2, 40)}"
    full, quarter = Case(text, (picture(1),)), reduced(text, 1)
    llm.reset_prefix_cache()

    def hit(case: Case) -> int:
        (output,) = llm.generate([case.prompt], [case.params(2)], use_tqdm=False)
        return output.num_cached_tokens

    assert hit(quarter) == 0
    assert hit(quarter) == 3 * BLOCK, "text before the image is shared; nothing behind it is"
    assert hit(full) == 3 * BLOCK
    assert hit(full) > 3 * BLOCK, "full-budget requests cache as in stock vLLM"
    assert hit(quarter) == 3 * BLOCK, "and a reduced request takes nothing of that"


CONVERSATIONS = {  # images of turn 1, images of turn 2
    "image in turn 1": ("<image>", ""),
    "image in turn 2": ("", "<image>"),
    "an image in each": ("<image>", "<image>"),
}


def turn(text: str, keep: tuple[float, ...]) -> Case:
    """A turn at one budget: full, or with one rule for all its cuts."""
    images = tuple(picture(i) for i in range(text.count("<image>")))
    if keep == FULL:
        return Case(text, images)
    cuts = sum(b < a for a, b in zip((1.0, *keep), keep, strict=False))
    return Case(text, images, keep, ("saliency" if keep[0] < 1 else "last",) * cuts)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_second_turn_is_the_same_after_any_first(
    name: str, engines: Engines, checkpoint: Path
) -> None:
    """Turn 2 with turn 1 in the prefix cache, answer included, says what it says alone."""
    llm = engines.get(model=checkpoint)
    letters = llm.get_tokenizer().encode("abcdefghijklmnop ", add_special_tokens=False)
    first_image, second_image = CONVERSATIONS[name]

    def say(case: Case, max_tokens: int, **options: Any) -> Any:
        params = case.params(max_tokens, allowed_token_ids=letters, **options)
        (output,) = llm.generate([case.prompt], [params], use_tqdm=False)
        return output

    for first, second in product((FULL, QUARTER, HALF), (FULL, QUARTER)):
        llm.reset_prefix_cache()
        opening = f"{words(1, 2 * BLOCK + 5)}{first_image}{words(2, 2 * BLOCK)}"
        said = say(turn(opening, first), BLOCK + 8)
        rest = f"{said.outputs[0].text}{words(3, 9)}{second_image}{words(4, 30)}"
        warm, again = (say(turn(opening + rest, second), 6, logprobs=-1) for _ in range(2))
        llm.reset_prefix_cache()
        cold = say(turn(opening + rest, second), 6, logprobs=-1)
        assert tokens([warm, again]) == tokens([cold]) * 2, (first, second)
        for output in (warm, again):
            assert np.allclose(*(logits(o, SHAPE.vocab) for o in (output, cold)), atol=1e-3)
        if first_image and (first, second) != (FULL, FULL):
            assert warm.num_cached_tokens == 2 * BLOCK, "text before the first image"
        else:
            assert warm.num_cached_tokens > len(said.prompt_token_ids), "and of the answer"


@pytest.mark.both_runners
def test_ranking_is_the_same_with_a_cold_and_a_warm_prefix(
    engines: Engines, checkpoint: Path
) -> None:
    llm = engines.get(model=checkpoint)
    text = f"{words(1, 3 * BLOCK + 5)}<image>{words(2, 40)}"
    for rule in ("last", "last-norope", "instruction-max"):
        case = Case(text, (picture(1),), QUARTER, (rule,) * 3)
        llm.reset_prefix_cache()
        cold = generate(llm, [case], 6)
        assert generate(llm, [case], 6) == cold, rule


def test_with_settings_nothing_runs_before_a_front_end_has_greeted(
    engines: Engines, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines.get(model=checkpoint)
    case = Case(words(1, 9))
    monkeypatch.setattr(scheduler(llm), "_awaits_front_end", True)
    with pytest.raises(ConfigurationError, match="no front end of VTR's has come up"):
        llm.llm_engine.add_request("early", case.prompt, case.params(1))
    assert not scheduler(llm).requests
    llm.llm_engine.abort_request(["early"])
    asyncio.run(greet(llm.llm_engine))
    assert len(generate(llm, [case], 1)) == 1


# From here on other engines than the one above; tests of the same engine stand together, as each
# change is a start.


def test_a_long_text_before_the_image_is_chunked(engines: Engines, checkpoint: Path) -> None:
    """Prefix in several steps, the range in one; same tokens as in one big step."""
    cases = [reduced(f"{words(i, 300)}<image>{words(9, 20)}", i) for i in range(3)]
    whole = generate(engines.get(model=checkpoint), cases)
    small = engines.get(
        model=checkpoint, enable_prefix_caching=False, max_num_batched_tokens=128, max_num_seqs=8
    )
    assert generate(small, cases) == whole


def test_a_chunk_never_splits_the_range(engines: Engines, checkpoint: Path) -> None:
    """Many long prompts through a small step: the plan of a split step would raise."""
    llm = engines.get(
        model=checkpoint, enable_prefix_caching=False, max_num_batched_tokens=128, max_num_seqs=8
    )
    rng = np.random.default_rng(1)
    cases = [
        reduced(f"{words(i, int(rng.integers(1, 200)))}<image>{words(i, 20)}", i) for i in range(12)
    ]
    mixed = [*cases, *[Case(words(i, 150)) for i in range(6)]]
    assert all(len(ids) == 8 for ids in generate(llm, [mixed[i] for i in rng.permutation(18)]))


def test_a_quarter_runs_ten_at_once_where_four_full_ones_fit(
    engines: Engines, checkpoint: Path
) -> None:
    """KV cache for 4 full requests of 9 blocks a band (266 prompt tokens and 16 more)."""
    bands, blocks_a_band = 4, 9
    llm = engines.get(
        model=checkpoint,
        num_gpu_blocks_override=4 * bands * blocks_a_band + 1,
        additional_config={"vtr": {"bands": bands}},
        enable_prefix_caching=False,
        max_model_len=32 * blocks_a_band,
    )
    images = tuple(picture(i) for i in range(4))
    text = f"{words(1, 2)}{'<image>' * 4}{words(2, 8)}"
    full = Case(text, images)
    keep = (1.0, 1.0) + (0.0,) * 6  # mean keep 0.25
    quarter = Case(text, images, keep, ("last",))
    most = {}
    for name, case in (("full", full), ("quarter", quarter)):
        steps = run_steps(llm, [case] * 16, max_tokens=16)
        most[name] = max(len(held) for held in steps)
    assert most["full"] == 4
    assert most["quarter"] >= 10


@pytest.mark.parametrize("batches", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_neighbours_or_preemption(
    batches: int, engines: Engines, checkpoint: Path
) -> None:
    """Random batches in a KV cache that forces preemption."""
    rng = np.random.default_rng(0)
    pool = [
        reduced(f"{words(1, 30)}<image>{words(2, 9)}", 1),
        reduced(f"{words(3, 8)}<image>{words(4, 30)}", 2, HALF),
        reduced(f"{words(3, 8)}<image>{words(4, 9)}", 3, (1.0, 1.0) + (0.5,) * 6),
        Case(f"{words(5, 12)}<image>{words(6, 9)}", (picture(3),)),
        Case(words(7, 60)),
    ]
    alone_engine = engines.get(model=checkpoint)
    alone = [generate(alone_engine, [case], 24)[0] for case in pool]
    llm = engines.get(model=checkpoint, num_gpu_blocks_override=60, **SMALL_CACHE)
    preempted = note_preemptions(llm)
    for _ in range(batches):
        picks = rng.integers(0, len(pool), 12)
        assert generate(llm, [pool[i] for i in picks], 24) == [alone[i] for i in picks]
    assert preempted


def test_counts_of_a_run_that_is_over_are_not_taken() -> None:
    """A request that was preempted and runs again, as after a reset of the prefix cache, is not yet counted."""
    asked = request_of([range(2, 12)], 14, [1, 1, 0.8, 0.8], ["last@0.5"])
    request = SimpleNamespace(status=RequestStatus.RUNNING, num_stale_output_tokens=1)
    ours: Any = Scheduler.__new__(Scheduler)
    ours.requests, ours.reduced, ours._as_asked = {"a": request}, {"a": asked}, {}
    ours._note_counts("a", (10, 10, 3, 3))
    assert ours.reduced == {"a": asked}
    request.num_stale_output_tokens = 0
    for count in (3, 5):
        ours._note_counts("a", (10, 10, count, count))
        assert ours.reduced["a"].plan.counts == (10, 10, count, count)
        assert ours._as_asked == {"a": asked}, "the most that may stay is not forgotten"
    ours._note_counts("gone", (10, 10, 3, 3))
    request.status = RequestStatus.PREEMPTED
    ours.reduced["a"] = asked
    ours._note_counts("a", (10, 10, 3, 3))
    assert ours.reduced == {"a": asked}
