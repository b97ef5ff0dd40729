"""Local requests on real engines: cold, warm, chunked, preempted and evicted, they answer alike."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.model import ReferenceLlava
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
from tests.vtr_vllm.engine.worker.test_decoder import TOLERANCE, expected
from vtr_vllm.engine.worker.compiled import LayerRunner

pytestmark = pytest.mark.engine
V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"

DEEP = ((0.6,) * 3 + (0.3,) * 3 + (0.0,) * 2, ("saliency", "random", "previous"))
SCHEDULES: list[Any] = [
    DEEP,
    ((1.0,) * 2 + (0.4,) * 6, ("cls",)),
    ((0.25,) * LAYERS, ("saliency",)),
    ((1.0,) * 2 + (0.5,) * 2 + (0.25,) * 4, ("self", "self-max")),
    (None, ()),
]
SYSTEM = words(0, 45)
STEP = 128
"""Tokens of a step that takes two images at most: prompts here are longer."""
CHUNKED = {"max_num_batched_tokens": STEP, "max_num_seqs": 8, "max_model_len": 512}


def conversation(seed: int, turns: int) -> list[tuple[str, tuple[Any, ...]]]:
    """The prompt of each turn, which holds the turns before: of two in three an image is new."""
    text, images, said = SYSTEM, (), []
    for turn in range(turns):
        if turn % 3 != 1:
            text += f"{words(seed + turn, 7)}<image>"
            images = (*images, picture((seed + turn) % 4))
        text += words(100 * seed + turn, 20)
        said.append((text, images))
        text += words(7 * seed + turn, 30)
    return said


def asked(seed: int = 3, turns: int = 4, schedules: Any = SCHEDULES) -> list[Case]:
    return [
        Case(text, images, keep, rules)
        for talk in range(seed)
        for text, images in conversation(talk, turns)
        for keep, rules in schedules
    ]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceLlava:
    return ReferenceLlava(checkpoint)


def run(llm: Any, batch: list[Case], max_tokens: int = 8, **options: Any) -> list[Any]:
    return llm.generate(
        [case.prompt for case in batch],
        [case.params(max_tokens, **options) for case in batch],
        use_tqdm=False,
    )


def check(reference: ReferenceLlava, case: Case, output: Any) -> None:
    got = logits(output, SHAPE.vocab)
    full = case if case.keep else replace(case, keep=(1.0,) * LAYERS, rules=())
    want = expected(reference, full, list(output.outputs[0].token_ids))
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), (case.keep, case.rules)


@pytest.mark.both_runners
def test_turn_by_turn_they_equal_the_reference(
    engines: Engines, checkpoint: Path, reference: ReferenceLlava
) -> None:
    """A conversation in each schedule at once; the later turns take what the earlier left."""
    llm = engines.get(model=checkpoint, enable_prefix_caching=True, **CHUNKED)
    llm.reset_prefix_cache()
    for number, (text, images) in enumerate(conversation(1, 2 if V2 else 4)):
        batch = [Case(text, images, keep, rules) for keep, rules in SCHEDULES]
        outputs = run(llm, batch, 3 if V2 else 8, logprobs=-1)
        for case, output in zip(batch, outputs, strict=True):
            check(reference, case, output)
            if number:  # of a prompt that was not cached in full, a block is computed again
                before = len(reference.prompt_token_ids(conversation(1, 4)[number - 1][0]))
                assert output.num_cached_tokens >= before // BLOCK * BLOCK, (number, case.keep)


@pytest.mark.both_runners
def test_no_layer_runs_on_no_rows(
    engines: Engines,
    checkpoint: Path,
    reference: ReferenceLlava,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps between two texts have an image alone, of which deep layers keep nothing: on a GPU a kernel
    of no rows is an error, and the engine's end."""
    text = SYSTEM + "<image>" * 4 + words(8, 20)
    keep = (1.0,) * 3 + (0.4,) + (0.0,) * 4
    case = Case(text, tuple(picture(number) for number in range(4)), keep, ("cls", "random"))
    llm = engines.get(model=checkpoint, enable_prefix_caching=False, **CHUNKED)
    rows, run_layer = [], LayerRunner.__call__

    def noted(self: Any, layer: Any, positions: Any, *given: Any) -> Any:
        rows.append(positions.shape[-1])
        return run_layer(self, layer, positions, *given)

    monkeypatch.setattr(LayerRunner, "__call__", noted)
    (output,) = run(llm, [case], 3, logprobs=-1)
    check(reference, case, output)
    assert len(rows) % LAYERS, "some step ended before the last layer"
    assert 0 not in rows


def test_any_order_any_neighbours_any_chunks_any_cache(engines: Engines, checkpoint: Path) -> None:
    """Shuffled and together, in a cache too small for them, in chunks: the tokens of each alone."""
    pool = asked()
    alone = engines.get(model=checkpoint, enable_prefix_caching=False)
    wanted = dict(
        zip(map(str, pool), tokens([run(alone, [case])[0] for case in pool]), strict=True)
    )
    assert len({tuple(answer) for answer in wanted.values()}) > len(pool) // 3
    small = engines.get(
        model=checkpoint, enable_prefix_caching=True, num_gpu_blocks_override=150, **CHUNKED
    )
    preempted = note_preemptions(small)
    rng = random.Random(0)
    cached = 0
    for _ in range(3):
        order = rng.sample(pool, k=36)
        outputs = run(small, order)
        cached += sum(output.num_cached_tokens for output in outputs)
        for case, answer in zip(order, tokens(outputs), strict=True):
            assert answer == wanted[str(case)], (case.text, case.keep)
    assert cached > 36 * 64, "nothing was reused"
    assert preempted, "nobody was preempted"
