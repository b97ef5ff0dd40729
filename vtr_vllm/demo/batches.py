"""Training batches: a few images, each with many questions packed behind one vision prefix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from vtr_vllm.demo.model import normalise
from vtr_vllm.demo.splits import seed_of
from vtr_vllm.demo.sprites import GLYPHS
from vtr_vllm.demo.tokenizer import EOS, FIRST_VISION, IDS, MARK, PREFIX, question_ids
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
ENDED = 2  # questions per image that also train the end token
IGNORED = -100

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
    """Questions packed behind the prefix: ``b`` rows of ``n`` tokens, ``q`` questions each.

    ids, owner (number of the question, from 1; -1 for padding), positions, labels, kinds: all
    ``[b, n]``. readers: ``[b, q]``, the row of each question's last token, counted after the
    prefix. hops: bool ``[2, b, q, 144]``, the target patches of the first and second hop.
    facts: ``(image, question, group, word)`` index rows ``[f, 4]`` of the words each answer
    follows from.
    """

    ids: Tensor
    owner: Tensor
    positions: Tensor
    labels: Tensor
    kinds: Tensor
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


def pack_questions(questions: list[list[Question]]) -> Pack:
    """Pack the questions of each image behind its prefix.

    Every question keeps the positions it would have alone, so training sees exactly what
    inference does.
    """
    b, q = len(questions), len(questions[0])
    columns: dict[str, list[list[int]]] = {
        name: [[] for _ in range(b)] for name in ("ids", "owner", "positions", "labels", "kinds")
    }
    readers = torch.zeros(b, q, dtype=torch.long)
    hops = torch.zeros(2, b, q, VISION_TOKENS, dtype=torch.bool)
    facts = []
    for i, row in enumerate(questions):
        for k, question in enumerate(row):
            ids, answer = question_ids(question.text), IDS[question.answer]
            labels = [IGNORED] * (len(ids) - 1) + [answer]
            readers[i, k] = len(columns["ids"][i]) + len(ids) - 1
            if k < ENDED:
                ids, labels = [*ids, answer], [*labels, IDS[EOS]]
            columns["ids"][i] += ids
            columns["labels"][i] += labels
            columns["owner"][i] += [k + 1] * len(ids)
            columns["positions"][i] += range(len(PREFIX), len(PREFIX) + len(ids))
            columns["kinds"][i] += [KINDS.index(question.kind)] * len(ids)
            for hop, patches in enumerate(_hop_patches(question)):
                hops[hop, i, k, patches] = True
            facts += _fact_rows(i, k, question)
    fill = {"ids": 0, "owner": -1, "positions": 0, "labels": IGNORED, "kinds": -1}
    length = -(-max(len(row) for row in columns["ids"]) // 8) * 8
    padded = {
        name: torch.tensor([row + [fill[name]] * (length - len(row)) for row in rows])
        for name, rows in columns.items()
    }
    return Pack(**padded, readers=readers, hops=hops, facts=torch.tensor(facts))


def pack_mask(owner: Tensor) -> Tensor:
    """Return the bool mask ``[b, 1, p + n, p + n]``: causal, each question blind to the others."""
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
