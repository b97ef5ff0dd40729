"""Scenes: what is asked about them is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vtr_vllm.photo.parts import PATCH, SIDE
from vtr_vllm.photo.scenes import CELLS, SPLITS, Scene, Thing, names, place_of, scene

PLACES = [
    f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "x", "right")
]


def test_a_scene_follows_from_its_split_and_number(art: Path) -> None:
    first, again, other = (scene(art, "train", number) for number in (3, 3, 4))
    assert first.questions == again.questions
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert first.image.size == (SIDE, SIDE)


def test_objects_of_the_unseen_split_are_in_no_other(art: Path) -> None:
    seen = {name for name, _ in names(art, unseen=False)}
    unseen = {name for name, _ in names(art, unseen=True)}
    assert seen
    assert unseen
    assert not seen & unseen
    for split in SPLITS:
        shown = {thing.name for i in range(8) for thing in scene(art, split, i).things}
        assert shown <= (unseen if split == "test-unseen" else seen)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("number", range(12))
def test_answers_are_so(art: Path, split: str, number: int) -> None:
    found = scene(art, split, number)
    assert 2 <= len(found.questions) <= 9
    for kind, question, answer, cells in found.questions:
        assert answer == expected(found, kind, question), question
        assert {thing.cell for thing in found.things} >= set(cells)
        assert bool(cells) == (answer != "no")


def expected(found: Scene, kind: str, question: str) -> str:
    """The answer, worked out from where things lie in pixels."""
    shown = [thing.name for thing in found.things]
    cells = {middle(thing.box): thing.name for thing in found.things}
    if kind == "exist":
        named = question.removeprefix("Is there a ").removesuffix(" in the picture?")
        return "yes" if named in shown else "no"
    if kind == "count":
        return str(shown.count(question.removeprefix("How many ").removesuffix("s are there?")))
    if kind == "list":
        return ", ".join(f"{cells[cell]} {spoken(*cell)}" for cell in sorted(cells))
    if kind == "total":
        return str(len(shown))
    if kind == "where":
        return cells[place(question.removeprefix("What is in the ").removesuffix("?"))]
    name = question.split(" the ")[1].removesuffix("?")
    row, column = next(cell for cell, thing in cells.items() if thing == name)
    if kind == "place":
        return spoken(row, column)
    return cells[(row, column - 1) if kind == "left" else (row - 1, column)]


def spoken(row: int, column: int) -> str:
    """The name of a place."""
    text = PLACES[row * CELLS + column].replace("x", "middle")
    return "center" if text == "middle middle" else text


def middle(box: tuple[int, int, int, int]) -> tuple[int, int]:
    """Row and column of the place that a box lies in."""
    left, top, right, bottom = box
    room = SIDE // CELLS
    return (top + bottom) // 2 // room, (left + right) // 2 // room


def place(text: str) -> tuple[int, int]:
    """Row and column of a place by its name."""
    if text == "center":
        return 1, 1
    row, column = text.split()
    rows, columns = ("top", "middle", "bottom"), ("left", "middle", "right")
    return rows.index(row), columns.index(column)


def test_an_objects_patches_lie_in_its_box(art: Path) -> None:
    side = SIDE // PATCH
    for thing in scene(art, "train", 0).things:
        left, top, right, bottom = thing.box
        for patch in thing.patches():
            x, y = patch % side * PATCH + PATCH / 2, patch // side * PATCH + PATCH / 2
            assert left <= x <= right
            assert top <= y <= bottom
        assert len(thing.patches()) >= 9


@pytest.mark.parametrize("number", range(12))
def test_a_question_is_about_the_patches_of_its_objects(art: Path, number: int) -> None:
    found = scene(art, "test", number)
    for question in found.questions:
        boxes = [thing.box for thing in about(found, question.kind, question.text)]
        side = SIDE // PATCH
        expected = [
            patch
            for patch in range(side * side)
            for x, y in [(patch % side * PATCH + PATCH / 2, patch // side * PATCH + PATCH / 2)]
            if any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)
        ]
        assert list(found.patches(question)) == expected, question


def about(found: Scene, kind: str, question: str) -> list[Thing]:
    """The objects that must be seen to answer."""
    if kind in ("total", "list"):
        return list(found.things)
    if kind == "where":
        cell = place(question.removeprefix("What is in the ").removesuffix("?"))
        return [thing for thing in found.things if middle(thing.box) == cell]
    named = [t for t in found.things if re.search(rf"\b{t.name}s?\b( are| in|\?)", question)]
    if kind not in ("left", "above"):
        return named
    row, column = middle(named[0].box)
    beside = (row, column - 1) if kind == "left" else (row - 1, column)
    return [*named, *(thing for thing in found.things if middle(thing.box) == beside)]


def test_every_token_lies_in_the_place_where_its_middle_is() -> None:
    side = SIDE // PATCH
    for patch in range(side * side):
        left, top = patch % side * PATCH, patch // side * PATCH
        row, column = (int((edge + PATCH / 2) / SIDE * CELLS) for edge in (top, left))
        assert place_of(patch) == row * CELLS + column
