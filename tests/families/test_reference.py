"""The families' reference against Transformers left alone, and against rows really taken out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.families.capture import Prompt
from tests.families.reference import Reference, Run
from tests.families.table import FAMILIES

LENGTH, FIRST, N = 40, 7, 24
"""Of the prompt; of its vision tokens, which are the images' 10 and 14."""
ANSWER = [40, 77, 130]
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module", params=["llava-siglip", "qwen3-vl"])
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """Plain positions, and M-RoPE with deepstack inputs."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    BY_NAME[request.param].write(folder)
    return Reference(BY_NAME[request.param].language_model(folder))


def prompt_of(reference: Reference) -> Prompt:
    """Random embeddings; on three axes, if the family has them, positions of a small image."""
    generator = torch.Generator().manual_seed(1)
    hidden = reference.lm_head.shape[1]
    positions = torch.arange(LENGTH)
    deepstack = []
    if hasattr(reference.model, "_deepstack_process"):
        rows = torch.arange(N)
        grid = torch.stack([rows * 0, rows // 6, rows % 6]) + FIRST
        text = torch.arange(LENGTH - FIRST - N) + FIRST + 6
        positions = torch.cat([positions[:FIRST].expand(3, -1), grid, text.expand(3, -1)], -1)
        deepstack = [torch.randn(LENGTH, hidden, generator=generator) for _ in range(2)]
    return Prompt(
        ids=list(range(10, 10 + LENGTH)),
        embeddings=torch.randn(LENGTH, hidden, generator=generator),
        text_embeddings=torch.zeros(LENGTH, hidden),
        positions=positions,
        vision=torch.arange(FIRST, FIRST + N),
        items=[10, 14],
        names=["an image", "another"],
        deepstack=deepstack,
    )


def layers_of(reference: Reference) -> int:
    return len(reference.model.layers)


def run(reference: Reference, counts: list[int], rules: dict[int, str]) -> Run:
    return reference.run(prompt_of(reference), counts, rules, ANSWER)


@torch.no_grad()
def plain(reference: Reference, keep: Tensor) -> Tensor:
    """Logits [1 + C, vocab] of Transformers on the vision tokens ``keep`` alone."""
    prompt = prompt_of(reference)
    text = torch.ones(LENGTH + len(ANSWER), dtype=torch.bool)
    text[prompt.vision] = False
    stays = text.clone()
    stays[prompt.vision[keep]] = True
    later = reference.model.get_input_embeddings()(torch.tensor(ANSWER))
    embeddings = torch.cat([prompt.embeddings, later])[stays]
    following = int(prompt.positions.max()) + 1 + torch.arange(len(ANSWER))
    positions = torch.cat(
        [prompt.positions, following.expand(*prompt.positions.shape[:-1], -1)], -1
    )[..., stays]
    more = {}
    if prompt.deepstack:
        more["visual_pos_masks"] = ~text[stays][None]
        levels = [level[prompt.vision[keep]] for level in prompt.deepstack]
        more["deepstack_visual_embeds"] = levels
    causal = torch.full((len(embeddings), len(embeddings)), float("-inf")).triu(1)
    hidden = reference.model(
        inputs_embeds=embeddings[None],
        position_ids=positions.unsqueeze(-2),
        attention_mask=causal[None, None],
        use_cache=False,
        **more,
    ).last_hidden_state[0]
    return functional.linear(hidden[-1 - len(ANSWER) :], reference.lm_head)


def saliency(reference: Reference, count: int) -> Tensor:
    """The ``count`` vision tokens that lie farthest from the median of their image."""
    prompt = prompt_of(reference)
    images = prompt.embeddings[prompt.vision].split(prompt.items)
    scores = torch.cat([(image - image.median(0).values).norm(dim=-1) for image in images])
    return scores.topk(count).indices.sort().values


def test_without_cuts_it_is_transformers(reference: Reference) -> None:
    found = run(reference, [N] * layers_of(reference), {})
    torch.testing.assert_close(found.logits, plain(reference, torch.arange(N)), atol=1e-4, rtol=0)
    assert not found.margins


def test_a_cut_at_the_start_takes_rows_out(reference: Reference) -> None:
    counts = [9] * layers_of(reference)
    found = run(reference, counts, {0: "saliency"})
    kept = saliency(reference, 9)
    torch.testing.assert_close(found.logits, plain(reference, kept), atol=1e-4, rtol=0)
    assert 0 < found.margins[0] < 1
    other = torch.arange(N)[~torch.isin(torch.arange(N), kept)][:9]
    assert (found.logits - plain(reference, other)).abs().max() > 0.05


@pytest.mark.parametrize("rule", ["last", "last-max", "last-norope", "instruction-norope-max"])
def test_a_deeper_cut_changes_only_what_is_behind_it(reference: Reference, rule: str) -> None:
    """The rule decides: another one keeps other tokens, and all kept is no cut."""
    last = layers_of(reference) - 1
    full = run(reference, [N] * (last + 1), {})
    found = run(reference, [N] * 3 + [6] * (last - 2), {3: rule})
    assert (found.logits - full.logits).abs().max() > 0.05
    other = run(reference, [N] * 3 + [6] * (last - 2), {3: "random"})
    assert (found.logits - other.logits).abs().max() > 0.01
    same = run(reference, [N] * (last + 1), {3: rule})
    assert torch.equal(same.logits, full.logits)


def test_scores_without_rope_do_not_see_positions(reference: Reference) -> None:
    """At layer 0 nothing else tells positions apart: vision tokens moved score as they did."""
    prompt = prompt_of(reference)
    moved = torch.randperm(N, generator=torch.Generator().manual_seed(2)) + FIRST
    positions = prompt.positions.clone()
    positions[..., FIRST : FIRST + N] = positions[..., moved]
    there = Prompt(**{**vars(prompt), "positions": positions})
    counts = [N] + [5] * (layers_of(reference) - 1)
    margin = {
        rule: [reference.run(each, counts, {1: rule}).margins[1] for each in (prompt, there)]
        for rule in ("last-norope", "last")
    }
    assert margin["last-norope"][0] == pytest.approx(margin["last-norope"][1], rel=1e-4)
    assert margin["last"][0] != pytest.approx(margin["last"][1], rel=1e-4)
