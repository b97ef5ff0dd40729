"""A checkpoint with learned registers, against the independent reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference.model import ReferenceLlava
from tests.tiny import tiny_llava
from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.support import Case, logits, picture, words
from vtr_vllm.errors import UnsupportedRequest
from vtr_vllm.schedules import RankRule, make_plan

pytestmark = [pytest.mark.engine, pytest.mark.both_runners]

V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
TOKENS = 4 if V2 else 16
TOLERANCE = 1e-3
REGISTERS = 4
IMAGE = SHAPE.vision_tokens + REGISTERS
FIRST_CUT = 3
SMALL_STEPS: dict[str, Any] = {
    "max_num_batched_tokens": 96,
    "max_num_seqs": 4,
    "enable_prefix_caching": False,
    "enable_mm_embeds": True,
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_llava(layers=LAYERS, registers=REGISTERS)


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceLlava:
    return ReferenceLlava(folder)


def keeping(*counts: int) -> tuple[float, ...]:
    """All tokens up to layer 3, then so many, of which the last goes on to the end."""
    behind = LAYERS - FIRST_CUT
    return (1.0,) * FIRST_CUT + tuple(c / IMAGE for c in (counts + counts[-1:] * behind)[:behind])


def batch() -> list[Case]:
    """One image and three, all registers and the first ones of them, full budget, and text."""
    prefix = words(5, 70)
    return [
        Case(f"{prefix}<image>{words(2, 20)}", (picture(1),), keeping(REGISTERS), ("registers",)),
        Case(
            f"{prefix}<image>{words(3, 5)}<image>{words(4, 9)}<image>{words(6, 12)}",
            (picture(1), picture(2), picture(3)),
            keeping(REGISTERS, 2),
            ("registers",) * 2,
        ),
        Case(f"{words(7, 3)}<image>{words(8, 9)}", (picture(2),), (1.0,) * LAYERS),
        Case(f"{words(7, 3)}<image>{words(8, 30)}", (picture(2),), keeping(0), ("registers",)),
        Case(words(9, 20)),
    ]


def run(llm: Any, cases: list[Case]) -> list[Any]:
    params = [case.params(TOKENS, logprobs=-1) for case in cases]
    found: list[Any] = llm.generate([case.prompt for case in cases], params, use_tqdm=False)
    return found


def check(reference: ReferenceLlava, cases: list[Case], outputs: list[Any]) -> None:
    """Every logit within 1e-3 of the largest."""
    for case, output in zip(cases, outputs, strict=True):
        if not case.images:
            continue  # only there as a neighbour
        own = make_plan(case.keep or (), [RankRule.parse(rule) for rule in case.rules], IMAGE)
        images = len(case.images)
        want = reference.forward(
            reference.prompt_token_ids(case.text),
            list(case.images),
            [images * count for count in own.counts],
            {layer: str(rule) for layer, rule in zip(own.cuts, own.rules, strict=True)},
            list(output.outputs[0].token_ids)[:-1],
            local=[list(own.counts)] * images,
        ).numpy()
        got = logits(output, SHAPE.vocab)
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), case


def test_registers_equal_the_reference(
    engines: Engines, folder: Path, reference: ReferenceLlava
) -> None:
    llm = engines.get(model=folder)
    cases = batch()
    assert [len(o.prompt_token_ids) for o in run(llm, cases)] == [
        len(reference.prompt_token_ids(case.text)) for case in cases
    ]
    llm.reset_prefix_cache()
    check(reference, cases, run(llm, cases))
    again = run(llm, cases)  # from the cache
    assert all(output.num_cached_tokens for output in again[:2])
    check(reference, cases, again)


@pytest.mark.skipif(V2, reason="the front end is the same for both runners")
def test_a_rule_that_would_drop_registers_is_refused(engines: Engines, folder: Path) -> None:
    case = Case(f"<image>{words(1, 9)}", (picture(1),), keeping(4), ("saliency",))
    with pytest.raises(UnsupportedRequest, match="would drop the model's 4 registers"):
        run(engines.get(model=folder), [case])


@pytest.mark.skipif(V2, reason="chunks are the scheduler's, the same for both runners")
def test_in_chunks(engines: Engines, folder: Path, reference: ReferenceLlava) -> None:
    cases = batch()
    check(reference, cases, run(engines.get(model=folder, **SMALL_STEPS), cases))


@pytest.mark.skipif(V2, reason="the front end is the same for both runners")
def test_embeddings_of_a_client_are_followed_by_registers(
    engines: Engines, folder: Path, reference: ReferenceLlava
) -> None:
    llm = engines.get(model=folder, **SMALL_STEPS)
    with torch.no_grad():
        features, _ = reference._embed_images([picture(1)])
    case = Case(f"{words(1, 9)}<image>{words(2, 9)}", (picture(1),), keeping(4), ("registers",))
    prompt = {
        "prompt": case.text,
        "multi_modal_data": {"image": features[:, : SHAPE.vision_tokens]},
    }
    params = case.params(TOKENS, logprobs=-1)
    check(reference, [case], llm.generate([prompt], [params], use_tqdm=False))


@pytest.mark.skipif(V2, reason="the front end is the same for both runners")
def test_a_model_without_registers_refuses_their_rule(engines: Engines, checkpoint: Path) -> None:
    case = Case(f"<image>{words(1, 9)}", (picture(1),), keeping(4), ("registers",))
    with pytest.raises(UnsupportedRequest, match="and the model has none"):
        run(engines.get(model=checkpoint), [case])
