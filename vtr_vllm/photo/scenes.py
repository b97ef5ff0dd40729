"""Scenes of rendered objects on photographs, with questions whose answers, and whose patches, are known.

Nothing is stored: a scene follows from its split and its number. Objects are those of ``parts.ART``,
backgrounds are parts of the two photographs that scikit-learn carries.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vtr_vllm.photo.parts import PATCH, SIDE

__all__ = ["LIST", "PLACES", "SPLITS", "Question", "Scene", "Thing", "names", "place_of", "scene"]

SPLITS = ("train", "calibration", "test", "test-unseen")
"""``test-unseen`` shows objects that no other split has; backgrounds of both tests are seen in none."""
LIST = "list"
"""Kind of the question for all that is there."""
CELLS = 3
"""A scene is a grid of 3 x 3 places."""
PLACES = (
    *("top left", "top middle", "top right"),
    *("middle left", "center", "middle right"),
    *("bottom left", "bottom middle", "bottom right"),
)
"""Of the grid, row by row."""
_RANGES = (
    range(0x1F332, 0x1F338),
    range(0x1F345, 0x1F37F),
    range(0x1F400, 0x1F440),
    range(0x1F451, 0x1F463),
    range(0x1F4BA, 0x1F4F8),
    range(0x1F681, 0x1F6A3),
    range(0x1F950, 0x1F970),
    range(0x1F980, 0x1F9AF),
    range(0x1F9C0, 0x1F9CC),
    range(0x1F9E6, 0x1FA00),
)
"""Code points of plants, food, animals, clothes, things and vehicles."""
_LONGEST = 2  # words of a name
_UNSEEN = 5  # every fifth object is kept for test-unseen
_FEWEST, _MOST = 3, 5  # objects of a scene
_SMALLEST, _LARGEST = 52, 72  # pixels of an object's side
_QUESTIONS = 8


@dataclass(frozen=True)
class Thing:
    """One object in a scene."""

    name: str
    cell: int
    """Which of the 3 x 3 places, row by row."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels."""

    def patches(self) -> list[int]:
        """Vision tokens whose middle the box covers, row by row."""
        left, top, right, bottom = ((edge - PATCH / 2) / PATCH for edge in self.box)
        side = SIDE // PATCH
        rows = [row for row in range(side) if top <= row <= bottom]
        columns = [column for column in range(side) if left <= column <= right]
        return [row * side + column for row in rows for column in columns]


class Question(NamedTuple):
    """A question about a scene."""

    kind: str
    text: str
    answer: str
    cells: tuple[int, ...]
    """Places of the objects that it is about; none where the answer is that nothing is there."""


@dataclass(frozen=True)
class Scene:
    """A picture of 224 x 224 and what may be asked about it."""

    image: Image.Image
    things: tuple[Thing, ...]
    questions: tuple[Question, ...]

    def short(self, number: int) -> Question:
        """One of the questions that are answered in a few words; ``number`` says which, in turn."""
        short = [question for question in self.questions if question.kind != LIST]
        return short[number % len(short)]

    def patches(self, question: Question) -> tuple[int, ...]:
        """Vision tokens that show what a question is about, rising."""
        shown = [thing.patches() for thing in self.things if thing.cell in question.cells]
        return tuple(sorted({patch for patches in shown for patch in patches}))


def place_of(patch: int) -> int:
    """Return the number in ``PLACES`` of the place that the middle of a vision token lies in."""
    row, column = divmod(patch, SIDE // PATCH)
    across, down = ((at * PATCH + PATCH // 2) * CELLS // SIDE for at in (column, row))
    return down * CELLS + across


def scene(art: Path, split: str, number: int) -> Scene:
    """Return scene ``number`` of a split; ``art`` is the folder of the cut-outs."""
    dice = np.random.default_rng([SPLITS.index(split), number])
    unseen = split == "test-unseen"
    known = names(art, unseen)
    count = int(dice.integers(_FEWEST, _MOST + 1))
    kinds = [known[i] for i in dice.choice(len(known), count, replace=False)]
    if dice.random() < 0.5:  # the same object more than once, for counting
        kinds[1] = kinds[0]
        kinds[2] = kinds[0] if dice.random() < 0.5 else kinds[2]
    cells = dice.choice(CELLS * CELLS, count, replace=False)
    image = _background(dice, held_out=split.startswith("test"))
    things = tuple(
        _paste(image, kind, int(cell), dice) for kind, cell in zip(kinds, cells, strict=True)
    )
    return Scene(image, things, tuple(_ask(things, [name for name, _ in known], dice)))


@cache
def names(art: Path, unseen: bool) -> list[tuple[str, Path]]:
    """Name and file of each object that a split may show."""
    found = []
    for code in (code for codes in _RANGES for code in codes):
        name = unicodedata.name(chr(code), "").lower()
        path = art / f"{code:x}.webp"
        if name and len(name.split()) <= _LONGEST and "-" not in name and path.exists():
            found.append((name.removesuffix(" face"), path))
    ordered = sorted(dict(reversed(found)).items())  # of two of one name the first
    return [pair for i, pair in enumerate(ordered) if (i % _UNSEEN == 0) == unseen]


@cache
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def _background(dice: np.random.Generator, held_out: bool) -> Image.Image:
    """A part of a photograph: of its right third where held out, else of the rest; mirrored or not."""
    photographs = _photographs()
    whole = photographs[dice.integers(len(photographs))]
    edge = whole.shape[1] * 2 // 3
    whole = whole[:, edge:] if held_out else whole[:, :edge]
    side = int(dice.integers(120, min(whole.shape[:2]) + 1))
    top = int(dice.integers(whole.shape[0] - side + 1))
    left = int(dice.integers(whole.shape[1] - side + 1))
    part = whole[top : top + side, left : left + side]
    if dice.random() < 0.5:
        part = part[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(part)).resize((SIDE, SIDE))


def _paste(
    image: Image.Image, kind: tuple[str, Path], cell: int, dice: np.random.Generator
) -> Thing:
    name, path = kind
    side = int(dice.integers(_SMALLEST, _LARGEST + 1))
    with Image.open(path) as stored:
        cut = stored.convert("RGBA").resize((side, side))
    room = SIDE // CELLS
    left = cell % CELLS * room + int(dice.integers(room - side + 1))
    top = cell // CELLS * room + int(dice.integers(room - side + 1))
    image.paste(cut, (left, top), cut)
    return Thing(name, cell, (left, top, left + side, top + side))


def _ask(
    things: Sequence[Thing], known: Sequence[str], dice: np.random.Generator
) -> list[Question]:
    """One for all that is there, and up to eight others, in an order of their own."""
    shown = [thing.name for thing in things]
    cells = {name: tuple(t.cell for t in things if t.name == name) for name in sorted(set(shown))}
    all_cells = tuple(sorted(thing.cell for thing in things))
    found = []
    single = str(dice.choice(shown))
    for name, own in cells.items():
        if len(own) > 1 or name == single:
            found.append(Question("count", f"How many {name}s are there?", str(len(own)), own))
        found.append(Question("exist", f"Is there a {name} in the picture?", "yes", own))
    for name in dice.choice(known, 3, replace=False):
        if name not in shown:
            found.append(Question("exist", f"Is there a {name} in the picture?", "no", ()))
    found.append(Question("total", "How many objects are there?", str(len(things)), all_cells))
    found += _ask_places(things, [thing for thing in things if len(cells[thing.name]) == 1])
    by_cell = {thing.cell: thing.name for thing in things}
    every = ", ".join(f"{by_cell[cell]} {PLACES[cell]}" for cell in all_cells)
    order = dice.permutation(len(found))[:_QUESTIONS]
    listed = Question(LIST, "What is in the picture, and where?", every, all_cells)
    return [listed, *(found[i] for i in order)]


def _ask_places(things: Sequence[Thing], alone: Sequence[Thing]) -> list[Question]:
    """What is where; of those ``alone`` of their name, what is beside them."""
    by_cell = {thing.cell: thing.name for thing in things}
    found = [
        Question("where", f"What is in the {PLACES[cell]}?", name, (cell,))
        for cell, name in by_cell.items()
    ]
    for thing in alone:
        name, cell = thing.name, thing.cell
        found.append(Question("place", f"Where is the {name}?", PLACES[cell], (cell,)))
        if cell % CELLS and cell - 1 in by_cell:
            beside = (cell - 1, cell)
            found.append(
                Question("left", f"What is left of the {name}?", by_cell[cell - 1], beside)
            )
        if cell - CELLS in by_cell:
            beside = (cell - CELLS, cell)
            found.append(
                Question("above", f"What is above the {name}?", by_cell[cell - CELLS], beside)
            )
    return found
