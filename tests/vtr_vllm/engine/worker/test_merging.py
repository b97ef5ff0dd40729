"""Cuts that add what they drop to what stays: by hand on tensors, and against the reference."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference.model import ReferenceLlava
from tests.vtr_vllm.engine.conftest import LAYERS, SHAPE, Engines
from tests.vtr_vllm.engine.support import Case, logits, picture, words
from tests.vtr_vllm.reduction.strategies import request_of
from vtr_vllm.engine.worker.decoder import _Stream
from vtr_vllm.engine.worker.merging import Merged, _Group
from vtr_vllm.ranking.merge import merges
from vtr_vllm.reduction.batch import StepRequest, plan_batch
from vtr_vllm.reduction.gather import Rows
from vtr_vllm.schedules import RankRule, make_plan

pytestmark = [pytest.mark.engine, pytest.mark.both_runners]

V2 = os.environ.get("VTR_TEST_RUNNER") == "v2"
TOKENS = 4 if V2 else 12
TOLERANCE = 1e-3
HALF = (1.0, 1.0, *[0.5] * 3, *[0.2] * 3)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceLlava:
    return ReferenceLlava(checkpoint)


def guided(seed: int, rule: str, images: int = 1) -> Case:
    shown = "".join(f"<image>{words(seed + place, 5)}" for place in range(images))
    pictures = tuple(picture(seed + place) for place in range(images))
    text = f"{words(seed, 9)}{shown}{words(seed + 7, 20)}"
    return Case(text, pictures, HALF, (rule, "last+nearest"))


def batch() -> list[Case]:
    """Every merge, on one image and on three; neighbours that do not merge, and full budget."""
    found = [guided(20 + seed, f"last+{name}") for seed, name in enumerate(merges())]
    found += [guided(40, "instruction+nearest", images=3), guided(50, "last"), guided(51, "last")]
    local = (0.5, *[0.5] * 2, *[0.25] * 5)
    text = f"{words(3, 40)}<image>{words(4, 9)}<image>{words(5, 9)}"
    images = (picture(1), picture(2))
    found.append(Case(text, images, local, ("saliency+nearest", "saliency+recycled")))
    found.append(Case(text, images, local, ("cls+scored", "cls+neighbours")))
    found.append(Case(f"<image>{words(6, 9)}", (picture(3),), (1.0,) * LAYERS))
    return found


def test_merged_runs_equal_the_reference(
    engines: Engines, checkpoint: Path, reference: ReferenceLlava
) -> None:
    """A mixed batch: every logit within 1e-3 of the largest."""
    cases = batch()[::3] if V2 else batch()
    outputs = engines.get(model=checkpoint).generate(
        [case.prompt for case in cases],
        [case.params(TOKENS, logprobs=-1) for case in cases],
        use_tqdm=False,
    )
    for case, output in zip(cases, outputs, strict=True):
        rules = [RankRule.parse(rule) for rule in case.rules]
        images = len(case.images)
        local = bool(rules) and not any(rule.sees_question for rule in rules)
        size = SHAPE.vision_tokens * (1 if local else images)
        plan = make_plan(case.keep or (), rules, size)
        want = reference.forward(
            reference.prompt_token_ids(case.text),
            list(case.images),
            [(images if local else 1) * count for count in plan.counts],
            {layer: str(rule) for layer, rule in zip(plan.cuts, plan.rules, strict=True)},
            list(output.outputs[0].token_ids)[:-1],
            local=[list(plan.counts)] * images if local else None,
        ).numpy()
        got = logits(output, SHAPE.vocab)
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), case.rules


def test_merging_changes_what_stays(engines: Engines, checkpoint: Path) -> None:
    cases = [guided(20, "last"), guided(20, "last+nearest")]
    outputs = engines.get(model=checkpoint).generate(
        [case.prompt for case in cases],
        [case.params(1, logprobs=-1) for case in cases],
        use_tqdm=False,
    )
    plain, merged = (logits(output, SHAPE.vocab) for output in outputs)
    assert np.abs(plain - merged).max() > 0.05 * np.abs(plain).max()


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many tokens some are looked at at a time."""
    draw = torch.Generator().manual_seed(0)
    stream = _Stream(torch.empty(0), torch.randn(120, 16, generator=draw))
    stream.residual = torch.randn(120, 16, generator=draw)
    for merge in merges().values():
        group = _Group(
            merge=merge,
            kept=torch.arange(40).view(2, 20),
            places=torch.arange(40).view(2, 20),
            dropped=torch.arange(40, 120).view(2, 40),
            kept_scores=torch.rand(2, 20, generator=draw),
            dropped_scores=torch.rand(2, 40, generator=draw),
        )
        whole = group.merged(stream)
        with monkeypatch.context() as patch:
            patch.setattr("vtr_vllm.engine.worker.merging.TILE_BYTES", 4 * 2 * 20 * 7)
            for part, all_at_once in zip(group.merged(stream), whole, strict=True):
                torch.testing.assert_close(part, all_at_once)


@pytest.mark.parametrize("merge", merges())
def test_ranks_put_one_state_into_one_place(merge: str) -> None:
    """Though the last bit of the scores differs, and with it the order in which they see the tokens."""
    request = request_of([range(2, 12)], 14, [1, 1, 0.5, 0.5], [f"cls+{merge}"])
    plan = plan_batch([StepRequest(0, 14, request)], 4, [0])
    vision = Rows(plan, torch.device("cpu")).vision
    kept = torch.tensor([0, 1, 2, 4, 6, 8, 10, 12, 13], dtype=torch.int32)
    draw = torch.Generator().manual_seed(0)
    hidden, residual = torch.randn(2, 14, 8, generator=draw)
    first = torch.rand(1, 14, generator=draw)
    other = first.clone()
    other[0, 2], other[0, 4] = first[0, 4], first[0, 2]
    said: list[torch.Tensor] = []

    def say(values: torch.Tensor) -> torch.Tensor:
        said.append(values)
        return values

    streams = []
    for scores, agree in ((first, say), (other, lambda values: said.pop(0))):
        stream = _Stream(torch.empty(0), hidden.clone())
        stream.residual = residual.clone()
        merged = Merged(plan.cuts[2], kept, scores, vision, stream, agree)
        stream.hidden, stream.residual = hidden[kept].clone(), residual[kept].clone()
        merged.put_into(stream)
        streams.append(stream)
    assert torch.equal(streams[0].hidden, streams[1].hidden)
    assert torch.equal(streams[0].residual, streams[1].residual)
