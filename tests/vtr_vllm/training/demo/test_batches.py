"""Packed training batches: every question as if it were alone."""

import torch

from vtr_vllm.demo.conversations import TURNS
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.tokenizer import (
    CHAT_TEMPLATE,
    EOS,
    IDS,
    IMAGE,
    PREFIX,
    build_tokenizer,
    question_ids,
)
from vtr_vllm.demo.world import VISION_TOKENS
from vtr_vllm.training.demo.batches import (
    GROUPS,
    IGNORED,
    PATCH_WORDS,
    alone,
    draw_questions,
    draw_scenes,
    draw_talks,
    embed_pack,
    label_patches,
    pack_mask,
    pack_talks,
)

SCENES, RNGS = draw_scenes(0, 2, USUAL)
QUESTIONS = [draw_questions(r, s, 6) for r, s in zip(RNGS, SCENES, strict=True)]
PACK = pack_talks(alone(QUESTIONS))
TALKS = draw_talks(RNGS, SCENES, 12)
TALK_PACK = pack_talks(TALKS)


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


def conversations() -> list[tuple[int, int]]:
    """Row and owner of each."""
    return [(i, k + 1) for i, row in enumerate(TALKS) for k in range(len(row))]


def test_conversations_hold_so_many_questions() -> None:
    for i, row in enumerate(TALKS):
        assert sum(len(talk) for talk in row) == 12
        assert all(len(talk) <= TURNS[1] for talk in row)
        assert any(turn.brings for turn in row[0][1:])
        assert not any(turn.brings for talk in row[1:] for turn in talk)
        glyphs = {item.glyph for item in SCENES[1 - i].objects}
        brought = [turn.brings for turn in row[0]].index(True)
        for turn in row[0][brought:]:
            if turn.question.kind == "color":
                assert turn.question.facts[0] in glyphs


def test_a_conversation_is_what_the_chat_template_gives() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    for i, owner in conversations():
        talk = TALKS[i][owner - 1]
        chat = []
        for number, turn in enumerate(talk):
            image = [{"type": "image"}] if turn.brings or not number else []
            text = [{"type": "text", "text": turn.question.text}]
            chat.append({"role": "user", "content": image + text})
            chat.append({"role": "assistant", "content": turn.question.answer})
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        expected = tokenizer(text, add_special_tokens=False).input_ids
        mine = TALK_PACK.ids[i][TALK_PACK.owner[i] == owner].tolist()
        packed = [*PREFIX, *mine]
        shrunk = [t for n, t in enumerate(packed) if t != IDS[IMAGE] or packed[n - 1] != t]
        assert shrunk == expected[: len(shrunk)]
        assert len(expected) - len(shrunk) in (1, 2)  # the end, and the answer before it
        positions = TALK_PACK.positions[i][TALK_PACK.owner[i] == owner].tolist()
        assert positions == list(range(len(PREFIX), len(packed)))


def test_each_turn_is_asked_for_its_answer_and_its_end() -> None:
    for i, row in enumerate(TALKS):
        turns = [(t, turn) for talk in row for t, turn in enumerate(talk)]
        for (t, turn), at in zip(turns, TALK_PACK.readers[i], strict=True):
            assert TALK_PACK.ids[i, at] == IDS["ASSISTANT:"]
            assert TALK_PACK.labels[i, at] == IDS[turn.question.answer]
            assert TALK_PACK.turns[i, at] == t
            if (
                at + 1 < len(TALK_PACK.ids[i])
                and TALK_PACK.owner[i, at + 1] == TALK_PACK.owner[i, at]
            ):
                assert TALK_PACK.labels[i, at + 1] == IDS[EOS]
        asked = (TALK_PACK.labels[i] != IGNORED) & (TALK_PACK.labels[i] != IDS[EOS])
        assert int(asked.sum()) == len(turns)


def test_targets_in_another_image_are_none_of_this_one() -> None:
    for i, row in enumerate(TALKS):
        number = 0
        for talk in row:
            brought = False
            for turn in talk:
                brought |= turn.brings
                found = TALK_PACK.hops[:, i, number].any(0).nonzero().flatten().tolist()
                assert found == ([] if brought else sorted(turn.question.targets))
                number += 1


def test_a_second_image_is_that_of_the_next_row() -> None:
    features = torch.arange(2.0 * VISION_TOKENS * 4).view(2, VISION_TOKENS, 4) + 1000
    words = torch.arange(128.0)[:, None].expand(-1, 4)
    embedded = embed_pack(words, features, TALK_PACK.ids)
    for i in range(2):
        is_image = TALK_PACK.ids[i] == IDS[IMAGE]
        assert torch.equal(embedded[i][is_image], features[1 - i])
        assert torch.equal(embedded[i][~is_image][:, 0], TALK_PACK.ids[i][~is_image].float())
