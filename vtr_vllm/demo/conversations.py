"""Conversations: several questions one after another, about one image or about two."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import RandomState

from vtr_vllm.demo.world import KINDS, Density, Question, Scene, ask, draw_scene

TURNS = (2, 4)
"""Questions of a conversation, inclusive."""
TURN_NAMES = tuple(f"turn {turn}" for turn in range(1, TURNS[1] + 1))
"""The kinds under which their answers are scored."""
TWO_IMAGES = 3
"""One conversation in so many brings a second image in a later turn."""


@dataclass(frozen=True)
class Turn:
    """A question about the image that came last; ``brings``: that image comes with it."""

    question: Question
    brings: bool


@dataclass(frozen=True)
class Conversation:
    """``scenes``: in the order in which turns bring them, the first turn the first."""

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]


def draw_conversation(rng: RandomState, density: Density) -> Conversation:
    """Draw a conversation; no question about an image comes twice."""
    count = int(rng.randint(TURNS[0], TURNS[1] + 1))
    second = int(rng.randint(1, count)) if rng.randint(TWO_IMAGES) == 0 else count
    scenes, turns = [], []
    for first, end in ((0, second), (second, count)):
        if first < end:
            scene = draw_scene(rng, density)
            scenes.append(scene)
            asked = _draw_questions(rng, scene, end - first)
            turns += [Turn(question, place == 0) for place, question in enumerate(asked)]
    return Conversation(tuple(scenes), tuple(turns))


def _draw_questions(rng: RandomState, scene: Scene, count: int) -> list[Question]:
    """Draw ``count`` different questions about ``scene``."""
    questions: dict[str, Question] = {}
    while len(questions) < count:
        question = ask(rng, scene, KINDS[rng.randint(len(KINDS))])
        if question is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())
