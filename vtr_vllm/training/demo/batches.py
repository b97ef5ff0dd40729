"""Training batches: a few images, each with many questions packed behind one vision prefix.

Questions stand alone, or in conversations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from vtr_vllm.demo.conversations import TURNS, Turn
from vtr_vllm.demo.model import normalise
from vtr_vllm.demo.splits import seed_of
from vtr_vllm.demo.sprites import GLYPHS
from vtr_vllm.demo.tokenizer import EOS, FIRST_VISION, IDS, IMAGE, MARK, PREFIX, question_ids
from vtr_vllm.demo.world import (
    CATEGORIES,
    COLOR_NAMES,
    COLUMNS,
    KINDS,
    NOTHING,
    PATCHES,
    ROWS,
    VISION_TOKENS,
    Density,
    Question,
    Scene,
    ask,
    draw_scene,
)

SHARES = {"color": 0.1, "at": 0.27, "same": 0.29, "which": 0.24, "exist": 0.1}
ENDED = 2  # conversations per image whose last question also trains the end token
ALONE = 3  # of so many conversations one has a single question
IGNORED = -100

Talk = list[Turn]
PATCH_WORDS = (NOTHING, *GLYPHS, MARK)
GROUPS = (GLYPHS, COLOR_NAMES, ROWS, COLUMNS, CATEGORIES)
PATCH_ROWS = torch.arange(VISION_TOKENS) // PATCHES // 2
PATCH_COLUMNS = torch.arange(VISION_TOKENS) % PATCHES // 2


def word_ids(words: tuple[str, ...]) -> Tensor:
    """Return the token ids of ``words``, ``[len(words)]``."""
    return torch.tensor([IDS[w] for w in words])


GROUP_IDS = [word_ids(group) for group in GROUPS]


@dataclass
class Patches:
    """Per-patch labels of ``b`` images.

    pixels: ``[b, 3, 168, 168]``. words: index into ``PATCH_WORDS``, ``[b, 144]``. colors:
    index into ``COLOR_NAMES`` or ``IGNORED``, ``[b, 144]``.
    """

    pixels: Tensor
    words: Tensor
    colors: Tensor


@dataclass
class Pack:
    """Conversations packed behind the prefix: ``b`` rows of ``n`` tokens, ``q`` questions each.

    ids, owner (number of the conversation, from 1; -1 for padding), positions, labels, kinds, turns
    (place of the question in its conversation, from 0): all ``[b, n]``. readers: ``[b, q]``, the row of each question's last token, counted after the
    prefix. hops: bool ``[2, b, q, 144]``, the target patches of the first and second hop.
    facts: ``(image, question, group, word)`` index rows ``[f, 4]`` of the words each answer
    follows from.
    """

    ids: Tensor
    owner: Tensor
    positions: Tensor
    labels: Tensor
    kinds: Tensor
    turns: Tensor
    readers: Tensor
    hops: Tensor
    facts: Tensor


def draw_scenes(first: int, count: int, density: Density) -> tuple[list[Scene], list[RandomState]]:
    """Return training scenes ``first`` .. ``first + count - 1`` and a generator for each."""
    rngs = [RandomState(seed_of("train", first + i)) for i in range(count)]
    return [draw_scene(rng, density) for rng in rngs], rngs


def label_patches(scenes: list[Scene]) -> Patches:
    """Return pixels and per-patch labels of ``scenes``."""
    words = np.zeros((len(scenes), VISION_TOKENS), np.int64)
    colors = np.full((len(scenes), VISION_TOKENS), IGNORED, np.int64)
    for i, scene in enumerate(scenes):
        for mark in scene.marks:
            words[i, mark.patch] = PATCH_WORDS.index(MARK)
            colors[i, mark.patch] = COLOR_NAMES.index(mark.color)
        for item in scene.objects:
            words[i, item.patch] = PATCH_WORDS.index(item.glyph)
            colors[i, item.patch] = COLOR_NAMES.index(item.color)
    pixels = normalise(np.stack([scene.pixels for scene in scenes]))
    return Patches(pixels, torch.from_numpy(words), torch.from_numpy(colors))


def draw_questions(rng: RandomState, scene: Scene, count: int) -> list[Question]:
    """Return ``count`` questions on ``scene``, kinds drawn by ``SHARES``."""
    questions: list[Question] = []
    shares = list(SHARES.values())
    while len(questions) < count:
        kind = list(SHARES)[int(rng.choice(len(shares), p=shares))]
        question = ask(rng, scene, kind)
        if question is not None:
            questions.append(question)
    return questions


def _hop_patches(question: Question) -> tuple[list[int], list[int]]:
    if question.kind == "same":
        return [question.targets[0]], [question.targets[1]]
    return list(question.targets), []


def _fact_rows(image: int, number: int, question: Question) -> list[tuple[int, int, int, int]]:
    rows = []
    for fact in question.facts:
        group = next(i for i, words in enumerate(GROUPS) if fact in words)
        rows.append((image, number, group, GROUPS[group].index(fact)))
    return rows


def draw_talks(rngs: list[RandomState], scenes: list[Scene], count: int) -> list[list[Talk]]:
    """Return conversations of ``count`` questions in all on each scene.

    The first of each row goes on with questions about the next row's image.
    """
    rows = []
    for i, (rng, scene) in enumerate(zip(rngs, scenes, strict=True)):
        about_other = int(rng.randint(1, TURNS[1]))
        other = draw_questions(rng, scenes[(i + 1) % len(scenes)], about_other)
        own = [Turn(q, False) for q in draw_questions(rng, scene, count - about_other)]
        talks: list[Talk] = []
        while own:
            turns = 1
            if not talks:
                turns = int(rng.randint(1, TURNS[1] - about_other + 1))
            elif rng.randint(ALONE):
                turns = int(rng.randint(TURNS[0], TURNS[1] + 1))
            talks.append(own[:turns])
            own = own[turns:]
        talks[0] += [Turn(question, place == 0) for place, question in enumerate(other)]
        rows.append(talks)
    return rows


def alone(questions: list[list[Question]]) -> list[list[Talk]]:
    """Return each question as a conversation of its own."""
    return [[[Turn(question, False)] for question in row] for row in questions]


def pack_talks(rows: list[list[Talk]]) -> Pack:
    """Pack the conversations of each image behind its prefix.

    Every one keeps the positions it would have alone, so training sees exactly what inference
    does. An answer is followed by the end token and the next question.
    """
    names = ("ids", "owner", "positions", "labels", "kinds", "turns")
    columns: dict[str, list[list[int]]] = {name: [[] for _ in rows] for name in names}
    asked = sum(len(talk) for talk in rows[0])
    readers = torch.zeros(len(rows), asked, dtype=torch.long)
    hops = torch.zeros(2, len(rows), asked, VISION_TOKENS, dtype=torch.bool)
    facts = []
    for i, row in enumerate(rows):
        number = 0
        for k, talk in enumerate(row):
            position, other = len(PREFIX), False
            for t, turn in enumerate(talk):
                other |= turn.brings
                question, last = turn.question, t == len(talk) - 1
                ids, labels = _turn_tokens(turn, first=t == 0, ended=not last or k < ENDED)
                readers[i, number] = len(columns["ids"][i]) + labels.index(IDS[question.answer])
                columns["ids"][i] += ids
                columns["labels"][i] += labels
                columns["owner"][i] += [k + 1] * len(ids)
                columns["positions"][i] += range(position, position + len(ids))
                columns["kinds"][i] += [KINDS.index(question.kind)] * len(ids)
                columns["turns"][i] += [t] * len(ids)
                position += len(ids)
                for hop, patches in enumerate(_hop_patches(question)):
                    hops[hop, i, number, patches] = not other
                facts += _fact_rows(i, number, question)
                number += 1
    fill = {"owner": -1, "labels": IGNORED, "kinds": -1, "turns": -1}
    length = -(-max(len(row) for row in columns["ids"]) // 8) * 8
    padded = {
        name: torch.tensor([row + [fill.get(name, 0)] * (length - len(row)) for row in rows])
        for name, rows in columns.items()
    }
    return Pack(**padded, readers=readers, hops=hops, facts=torch.tensor(facts))


def _turn_tokens(turn: Turn, first: bool, ended: bool) -> tuple[list[int], list[int]]:
    """Ids and labels of a turn; ``first``: the prefix holds what stands before its question."""
    before = [] if first else [IDS[EOS], IDS["USER:"]]
    if turn.brings:
        before += [IDS[IMAGE]] * VISION_TOKENS + [IDS["\n"]]
    ids = [*before, *question_ids(turn.question.text)]
    answer = IDS[turn.question.answer]
    labels = [IGNORED] * (len(ids) - 1) + [answer]
    return ([*ids, answer], [*labels, IDS[EOS]]) if ended else (ids, labels)


def pack_mask(owner: Tensor) -> Tensor:
    """Return the bool mask ``[b, 1, p + n, p + n]``: causal, each conversation blind to the others."""
    prefix = torch.zeros(len(owner), len(PREFIX), dtype=owner.dtype)
    owners = torch.cat([prefix, owner], 1)
    size = owners.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    visible = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == 0)
    return (causal & visible)[:, None]


def embed_prefix(embeddings: Tensor, features: Tensor) -> Tensor:
    """Return the prefix ``[b, p, width]`` with ``features`` in place of the placeholders."""
    words = embeddings[torch.tensor(PREFIX)].to(features.dtype)[None]
    words = words.expand(len(features), -1, -1)
    tail = words[:, FIRST_VISION + VISION_TOKENS :]
    return torch.cat([words[:, :FIRST_VISION], features, tail], 1)


def embed_pack(embeddings: Tensor, features: Tensor, ids: Tensor) -> Tensor:
    """Return the tokens behind the prefix ``[b, n, width]``; a second image is the next row's."""
    words = torch.nn.functional.embedding(ids, embeddings)
    is_image = ids == IDS[IMAGE]
    place = (is_image.cumsum(1) - 1).clamp(min=0) % VISION_TOKENS
    other = features.roll(-1, 0).gather(1, place[..., None].expand(-1, -1, features.shape[-1]))
    return torch.where(is_image[..., None], other, words)
