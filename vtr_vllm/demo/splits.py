"""The splits: disjoint ranges of scene seeds, and one sample per index."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from numpy.random import RandomState
from PIL import Image

from vtr_vllm.demo.conversations import Conversation, draw_conversation
from vtr_vllm.demo.world import KINDS, Density, Question, Scene, ask, draw_scene

USUAL = Density(objects=(20, 32), marks=(16, 28), noise=9)
HARD = Density(objects=(32, 36), marks=(56, 72), noise=28)


@dataclass(frozen=True)
class Split:
    """A split owns the scene seeds of ``seeds`` and draws its scenes at ``density``."""

    seeds: range
    density: Density


TABLE = {
    "train": Split(range(1 << 30), USUAL),
    "calibration": Split(range(1 << 30, (1 << 30) + 100_000), USUAL),
    "test": Split(range(1 << 31, (1 << 31) + 100_000), USUAL),
    "test-hard": Split(range(3 << 30, (3 << 30) + 100_000), HARD),
}
SPLITS: tuple[str, ...] = tuple(TABLE)
CONVERSATIONS = {
    "calibration-talk": Split(range((1 << 30) + 200_000, (1 << 30) + 300_000), USUAL),
    "test-talk": Split(range((1 << 31) + 200_000, (1 << 31) + 300_000), USUAL),
}
"""Splits whose samples are conversations."""


def check_disjoint(splits: dict[str, Split]) -> None:
    """Raise ValueError when two splits share a scene seed."""
    ordered = sorted(splits.items(), key=lambda item: item[1].seeds.start)
    for (name, split), (other, later) in pairwise(ordered):
        if split.seeds.stop > later.seeds.start:
            raise ValueError(f"splits {name!r} and {other!r} share scene seeds")


check_disjoint(TABLE | CONVERSATIONS)


@dataclass(frozen=True)
class Sample:
    """One image with one question.

    image: RGB, 168 x 168 pixels. answer: one word. kind: one of the question kinds.
    targets: indices of the patches (0..143, row by row) that the answer is read from.
    """

    image: Image.Image
    question: str
    answer: str
    kind: str
    targets: tuple[int, ...]


def seed_of(split: str, index: int, table: dict[str, Split] = TABLE) -> int:
    """Return the scene seed. Raises ValueError for an unknown split or an index out of range."""
    if split not in table:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(table)}")
    seeds = table[split].seeds
    if not 0 <= index < len(seeds):
        raise ValueError(f"index {index} is outside split {split!r}: 0 to {len(seeds) - 1}")
    return seeds[index]


def draw(split: str, index: int) -> tuple[Scene, Question]:
    """Return scene and question of a sample; the kinds take turns over the indices.

    Raises ValueError as :func:`seed_of`.
    """
    rng = RandomState(seed_of(split, index))
    kind = KINDS[index % len(KINDS)]
    while True:
        scene = draw_scene(rng, TABLE[split].density)
        question = ask(rng, scene, kind)
        if question is not None:
            return scene, question


def sample(split: str, index: int) -> Sample:
    """Return sample ``index`` of ``split``, the same bytes on every machine.

    Raises ValueError for an unknown split or an index out of range.
    """
    scene, question = draw(split, index)
    image = Image.fromarray(scene.pixels)
    return Sample(image, question.text, question.answer, question.kind, question.targets)


def conversation(split: str, index: int) -> Conversation:
    """Return conversation ``index`` of ``split``, one of ``CONVERSATIONS``.

    Raises ValueError as :func:`seed_of`.
    """
    rng = RandomState(seed_of(split, index, CONVERSATIONS))
    return draw_conversation(rng, CONVERSATIONS[split].density)
