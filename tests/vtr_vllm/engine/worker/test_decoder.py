"""Reduced runs against the independent reference: the product's central claim."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.reference.model import ReferenceLlava, Run
from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.support import Case, logits, picture, words
from vtr_vllm.engine.worker.decoder import unquantised
from vtr_vllm.schedules import Plan, RankRule, make_plan, see_no_question

pytestmark = [pytest.mark.engine, pytest.mark.both_runners]

TOLERANCE = 1e-3
V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
TOKENS = 6 if V2 else 16  # a step takes long in Triton's interpreter
ATTENTION = [
    *["last", "last-norope", "last-max", "instruction", "instruction-norope-max"],
    *["last-prior", "instruction:9032"],
]
BLIND = ["saliency", "random", "cls"]


@st.composite
def keep_curves(draw: st.DrawFn) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """A falling curve with one to four cuts, and a rule for each."""
    layers = draw(st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=4, unique=True))
    rates = sorted(
        draw(
            st.lists(st.floats(0.0, 0.95), min_size=len(layers), max_size=len(layers), unique=True)
        ),
        reverse=True,
    )
    keep, rules, rate = [], [], 1.0
    cuts = dict(zip(sorted(layers), rates, strict=True))
    for layer in range(LAYERS):
        if layer in cuts:
            rate = cuts[layer]
            allowed = BLIND + (ATTENTION if layer >= 2 else []) + (["previous"] if rules else [])
            rules.append(draw(st.sampled_from(allowed)))
        keep.append(rate)
    return tuple(keep), tuple(rules)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A prompt of text and one to three images, with text before, between and behind them."""
    keep, rules = draw(keep_curves())
    count = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 10_000))
    parts = [words(seed, draw(st.integers(1, 60)))]
    for i in range(count):
        parts += ["<image>", words(seed + 1 + i, draw(st.integers(0, 20)))]
    parts.append(words(seed + 9, draw(st.integers(1, 30))))
    images = tuple(picture(seed + i) for i in range(count))
    floor = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]) | st.floats(0, 1))
    return Case("".join(parts), images, keep, rules, floor=floor)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceLlava:
    return ReferenceLlava(checkpoint)


def planned(case: Case) -> tuple[Plan, list[list[int]] | None]:
    """The plan of all images together, and of a local schedule the counts of each."""
    assert case.keep is not None
    rules = [RankRule.parse(rule) for rule in case.rules]
    n_vision = SHAPE.vision_tokens * len(case.images)
    if not see_no_question(rules):
        return make_plan(case.keep, rules, n_vision), None
    # The engine has a band for each layer, so any cut is at a band's first.
    own = make_plan(case.keep, rules, SHAPE.vision_tokens)
    counts = tuple(len(case.images) * count for count in own.counts)
    return replace(own, n_vision=n_vision, counts=counts), [list(own.counts)] * len(case.images)


def reference_run(reference: ReferenceLlava, case: Case, generated: list[int]) -> Run:
    """What the reference finds, ``generated`` behind the prompt."""
    plan, of_image = planned(case)
    return reference.run(
        reference.prompt_token_ids(case.text),
        list(case.images),
        list(plan.counts),
        {layer: str(rule) for layer, rule in zip(plan.cuts, plan.rules, strict=True)},
        generated,
        case.floor,
        of_image,
    )


def expected(reference: ReferenceLlava, case: Case, generated: list[int]) -> np.ndarray:
    """Reference logits [tokens, vocab] at the last prompt token and after each token but one."""
    return reference_run(reference, case, generated[:-1]).logits.numpy()


# No shrinking: an example is a batch on a real engine, and the first one that fails says enough.
ONE_SHOT = settings(
    max_examples=2 if V2 else 5,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@ONE_SHOT
@given(batch=st.lists(cases(), min_size=3, max_size=6))
def test_reduced_runs_equal_the_reference(
    batch: list[Case], engines: Engines, checkpoint: Path, reference: ReferenceLlava
) -> None:
    """A mixed batch: every logit within 1e-3 of the largest."""
    llm = engines.get(model=checkpoint)
    outputs = llm.generate(
        [case.prompt for case in batch],
        [case.params(TOKENS, logprobs=-1) for case in batch],
        use_tqdm=False,
    )
    for case, output in zip(batch, outputs, strict=True):
        got = logits(output, SHAPE.vocab)
        want = expected(reference, case, list(output.outputs[0].token_ids))
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), (case.keep, case.rules)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_query_in_fp8_is_ranked_as_what_it_stands_for(groups: int) -> None:
    query = torch.randn(5, 4, 8)
    scale = torch.rand(groups) + 0.5
    by_head = scale.repeat_interleave(4 // groups)[:, None]
    back = unquantised((query / by_head).to(torch.float8_e4m3fn), torch.float32, scale)
    torch.testing.assert_close(back, query, rtol=0.07, atol=0.01)  # 3 bits of mantissa
    same = unquantised(query, query.dtype, scale)
    assert torch.equal(same, query)
    assert same.data_ptr() != query.data_ptr()
