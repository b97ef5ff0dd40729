"""Packed training batches: every question as if it were alone."""

import torch

from vtr_vllm.demo.batches import (
    GROUPS,
    IGNORED,
    PATCH_WORDS,
    draw_questions,
    draw_scenes,
    label_patches,
    pack_mask,
    pack_questions,
)
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.tokenizer import IDS, PREFIX, question_ids

SCENES, RNGS = draw_scenes(0, 2, USUAL)
QUESTIONS = [draw_questions(r, s, 6) for r, s in zip(RNGS, SCENES, strict=True)]
PACK = pack_questions(QUESTIONS)


def test_each_question_has_the_positions_it_would_have_alone() -> None:
    for i, row in enumerate(QUESTIONS):
        for k, question in enumerate(row):
            mine = PACK.owner[i] == k + 1
            ids = question_ids(question.text)
            assert PACK.ids[i][mine][: len(ids)].tolist() == ids
            assert PACK.positions[i][mine][0] == len(PREFIX)


def test_the_last_token_of_each_question_is_asked_for_the_answer() -> None:
    for i, row in enumerate(QUESTIONS):
        for k, question in enumerate(row):
            at = PACK.readers[i, k]
            assert PACK.ids[i, at] == IDS["ASSISTANT:"]
            assert PACK.labels[i, at] == IDS[question.answer]


def test_questions_do_not_see_each_other() -> None:
    mask = pack_mask(PACK.owner)[:, 0]
    start = len(PREFIX)
    for i in range(2):
        own = PACK.owner[i]
        seen = mask[i, start:, start:]
        assert not seen[own[:, None] != own[None, :]].any()
        assert mask[i, start:, :start].all()
        assert not mask[i, :start, start:].any()
    assert not mask.triu(1).any()


def test_hops_and_facts_are_those_of_the_questions() -> None:
    for image, number, group, word in PACK.facts.tolist():
        assert GROUPS[group][word] in QUESTIONS[image][number].facts
    for i, row in enumerate(QUESTIONS):
        for k, question in enumerate(row):
            found = PACK.hops[:, i, k].any(0).nonzero().flatten().tolist()
            assert found == sorted(question.targets)


def test_patch_labels_are_the_scene() -> None:
    patches = label_patches(SCENES)
    assert patches.pixels.shape == (2, 3, 168, 168)
    for i, scene in enumerate(SCENES):
        for item in scene.objects:
            assert PATCH_WORDS[patches.words[i, item.patch]] == item.glyph
        full = len(scene.objects) + len(scene.marks)
        assert int((patches.words[i] > 0).sum()) == full
        assert torch.equal(patches.words[i] > 0, patches.colors[i] != IGNORED)
