"""The reference itself is checked against transformers and against attention masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.reference.model import ReferenceLlava
from tests.reference.scores import random_scores
from tests.tiny import TinyShape, random_image, tiny_llava

SHAPE = TinyShape()
LAYERS, N = SHAPE.layers, SHAPE.vision_tokens
QUESTION = "USER: <image>\nWhat colour is the circle on the left? ASSISTANT:"
TWO = "USER: <image> and <image>\nWhich one is darker? ASSISTANT:"
ANSWER = [40, 77, 130, 201, 9]
ATTENTION_RULES = ["last", "last-max", "last-norope", "last-norope-max"]
ATTENTION_RULES += [rule.replace("last", "instruction") for rule in ATTENTION_RULES]
PINNED = [0.5349, 0.1988, 0.6592, 0.5979, 0.8453]
BLIND_RULES = ["saliency", "cls", "random"]


@pytest.fixture(scope="module")
def model() -> ReferenceLlava:
    return ReferenceLlava(tiny_llava())


def images(count: int) -> list[Image.Image]:
    return [random_image(SHAPE, seed) for seed in range(count)]


def hf_logits(
    model: ReferenceLlava, ids: list[int], pictures: list[Image.Image], mask: Tensor | None = None
) -> Tensor:
    """Logits ``[1, tokens, vocab]`` of transformers' own forward pass."""
    with torch.no_grad():
        return model.hf(
            input_ids=torch.tensor([ids]),
            pixel_values=model.pixel_values(pictures),
            attention_mask=mask,
        ).logits


@pytest.mark.parametrize(("text", "count"), [(QUESTION, 1), (TWO, 2)])
def test_full_counts_equal_transformers(model: ReferenceLlava, text: str, count: int) -> None:
    ids = model.prompt_token_ids(text)
    assert ids.count(model.config.image_token_id) == count * N
    mine = model.forward(ids, images(count), [count * N] * LAYERS, {}, ANSWER)
    theirs = hf_logits(model, ids + ANSWER, images(count))[0, len(ids) - 1 :]
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", [*ATTENTION_RULES, *BLIND_RULES])
def test_keeping_all_under_a_rule_is_the_identity(model: ReferenceLlava, rule: str) -> None:
    ids = model.prompt_token_ids(QUESTION)
    rules = dict.fromkeys(range(LAYERS), rule)
    kept = model.run(ids, images(1), [N] * LAYERS, rules, ANSWER)
    assert not kept.cuts
    assert torch.equal(kept.logits, model.forward(ids, images(1), [N] * LAYERS, {}, ANSWER))


@pytest.mark.parametrize("cut", [0, 1, 3, LAYERS - 1])
def test_dropping_all_equals_a_mask(model: ReferenceLlava, cut: int) -> None:
    """From layer ``cut`` on no row may see a vision token; transformers does it by masking."""
    ids = model.prompt_token_ids(TWO)
    counts = [2 * N] * cut + [0] * (LAYERS - cut)
    mine = model.forward(ids, images(2), counts, {cut: "saliency"}, ANSWER)
    theirs = masked_logits(model, ids + ANSWER, images(2), cut, range(2 * N))
    torch.testing.assert_close(mine, theirs[len(ids) - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ATTENTION_RULES)
def test_a_partial_cut_equals_a_mask_and_misses_it_when_off_by_one(
    model: ReferenceLlava, rule: str
) -> None:
    ids, cut, count = model.prompt_token_ids(QUESTION), 2, N // 4
    counts = [N] * cut + [count] * (LAYERS - cut)
    run = model.run(ids, images(1), counts, {cut: rule}, ANSWER)
    kept = run.cuts[cut].kept.tolist()
    assert len(kept) == count
    dropped = [i for i in range(N) if i not in kept]
    theirs = masked_logits(model, ids + ANSWER, images(1), cut, dropped)[len(ids) - 1 :]
    torch.testing.assert_close(run.logits, theirs, atol=1e-4, rtol=1e-4)
    wrong = [kept[0], *dropped[1:]]
    theirs = masked_logits(model, ids + ANSWER, images(1), cut, wrong)[len(ids) - 1 :]
    assert (run.logits - theirs).abs().max() > 1e-2


def masked_logits(
    model: ReferenceLlava,
    ids: list[int],
    pictures: list[Image.Image],
    cut: int,
    hidden: Iterable[int],
) -> Tensor:
    """Logits ``[tokens, vocab]`` of transformers with vision tokens unseen from ``cut`` on."""
    vision = (torch.tensor(ids) == model.config.image_token_id).nonzero().squeeze(1)
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
    hiding = mask.clone()
    hiding[:, vision[list(hidden)]] = float("-inf")
    hiding.fill_diagonal_(0)  # a row must see something; nobody reads the hidden rows

    def swap(index: int) -> Callable[..., tuple[object, dict[str, object]]]:
        def hook(
            module: object, args: object, kwargs: dict[str, object]
        ) -> tuple[object, dict[str, object]]:
            chosen = hiding if index >= cut else mask
            return args, {**kwargs, "attention_mask": chosen[None, None]}

        return hook

    layers = model.hf.model.language_model.layers
    handles = [
        layer.register_forward_pre_hook(swap(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    try:
        return hf_logits(model, ids, pictures)[0]
    finally:
        for handle in handles:
            handle.remove()


def test_scores_are_attention_of_transformers(model: ReferenceLlava) -> None:
    """``last`` and ``instruction`` are read off the eager attention of the layer before."""
    ids, cut = model.prompt_token_ids(QUESTION), 3
    counts = [N] * cut + [5] * (LAYERS - cut)
    with torch.no_grad():
        found = model.hf(
            input_ids=torch.tensor([ids]),
            pixel_values=model.pixel_values(images(1)),
            output_attentions=True,
        ).attentions[cut - 1][0]
    first = ids.index(model.config.image_token_id)
    vision = slice(first, first + N)
    expected = {
        "last": found[:, -1, vision].mean(0),
        "last-max": found[:, -1, vision].amax(0),
        "instruction": found[:, first + N :, vision].mean(0).mean(0),
        "instruction-max": found[:, first + N :, vision].amax(0).mean(0),
    }
    for rule, scores in expected.items():
        run = model.run(ids, images(1), counts, {cut: rule})
        torch.testing.assert_close(run.cuts[cut].scores, scores, atol=1e-6, rtol=1e-4)


def test_cls_scores_are_attention_of_the_tower(model: ReferenceLlava) -> None:
    ids = model.prompt_token_ids(TWO)
    run = model.run(ids, images(2), [7] * LAYERS, {0: "cls"})
    with torch.no_grad():
        found = model.hf.model.vision_tower(
            model.pixel_values(images(2)), output_attentions=True
        ).attentions[model.config.vision_feature_layer]
    expected = found[:, :, 0, 1:].mean(1).flatten()
    torch.testing.assert_close(run.cuts[0].scores, expected, atol=1e-6, rtol=1e-4)


def test_kept_sets_nest_and_attention_ranks_only_survivors(model: ReferenceLlava) -> None:
    ids = model.prompt_token_ids(TWO)
    counts = [90, 90, 40, 40, 20, 20, 3, 0]
    rules = {0: "saliency", 2: "last", 4: "previous", 6: "instruction-norope-max", 7: "random"}
    cuts = model.run(ids, images(2), counts, rules, ANSWER).cuts
    assert [len(cuts[c].kept) for c in sorted(cuts)] == [90, 40, 20, 3, 0]
    for inner, outer in ((2, 0), (4, 2), (6, 4)):
        assert set(cuts[inner].kept.tolist()) < set(cuts[outer].kept.tolist())
    assert int(cuts[2].scores.isnan().sum()) == 2 * N - 90
    survivors = cuts[2].kept
    torch.testing.assert_close(cuts[4].scores[survivors], cuts[2].scores[survivors])


def test_random_scores_are_pinned() -> None:
    """Any implementation of the rule must draw these numbers for images of these seeds."""
    scores = random_scores([7, 8], [3, 2])
    torch.testing.assert_close(scores, torch.tensor(PINNED), atol=1e-4, rtol=0)
    assert torch.equal(scores[:3], random_scores([7], [3]))


def test_greedy_tokens_vary(model: ReferenceLlava) -> None:
    """A model that always says the same would make token comparisons worthless."""
    firsts = set()
    for seed in range(8):
        ids = model.prompt_token_ids(QUESTION)
        logits = model.forward(ids, [random_image(SHAPE, seed)], [N] * LAYERS)
        firsts.add(int(logits[0].argmax()))
    assert len(firsts) > 1


@pytest.mark.parametrize(
    ("counts", "rules", "message"),
    [
        ([N] * 3, {}, "counts for"),
        ([N] * 3 + [N // 2] * 5, {}, "no rule"),
        ([N // 2] * 4 + [N] * 4, {0: "cls"}, "after"),
        ([4] * 8, {0: "last"}, "cannot score"),
        ([N] * 2 + [4] * 6, {2: "last-median"}, "median"),
    ],
)
def test_refuses(
    model: ReferenceLlava, counts: list[int], rules: dict[int, str], message: str
) -> None:
    ids = model.prompt_token_ids(QUESTION)
    with pytest.raises(ValueError, match=message):
        model.forward(ids, images(1), counts, rules)
