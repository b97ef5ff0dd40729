"""Scenes and questions: answers right and unique, targets where the objects are."""

from collections import Counter

import numpy as np
import pytest

from vtr_vllm.demo import SPLITS, sample
from vtr_vllm.demo.splits import TABLE, draw
from vtr_vllm.demo.world import COLORS, COLUMNS, PATCH_SIDE, PATCHES, ROWS, Scene


def solve(scene: Scene, text: str) -> list[str]:
    """Return every answer that ``scene`` allows, worked out from the text alone."""
    objects = scene.objects
    words = text.rstrip("?").replace(",", "").split()
    match words:
        case ["What", "color", "is", "the", glyph]:
            return [o.color for o in objects if o.glyph == glyph]
        case ["What", "is", "in", "the", row, "row", "column", column]:
            place = (ROWS.index(row), COLUMNS.index(column))
            return [o.glyph for o in objects if (o.row, o.column) == place] or ["nothing"]
        case ["What", "has", "the", "same", "color", "as", "the", glyph]:
            (named,) = (o for o in objects if o.glyph == glyph)
            return [o.glyph for o in objects if o.color == named.color and o is not named]
        case ["Which", category, "is", color]:
            return [o.glyph for o in objects if (o.category, o.color) == (category, color)]
        case ["Is", "there", "a", glyph]:
            return ["yes" if any(o.glyph == glyph for o in objects) else "no"]
    raise AssertionError(text)


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_right_and_the_only_one(split: str) -> None:
    for index in range(100):
        scene, question = draw(split, index)
        assert solve(scene, question.text) == [question.answer]


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_as_crowded_as_promised(split: str) -> None:
    density = TABLE[split].density
    for index in range(40):
        scene, _ = draw(split, index)
        assert density.objects[0] <= len(scene.objects) <= density.objects[1]
        assert density.marks[0] <= len(scene.marks) <= density.marks[1]
        patches = [o.patch for o in scene.objects] + [m.patch for m in scene.marks]
        assert len(set(patches)) == len(patches)
        assert len({(o.row, o.column) for o in scene.objects}) == len(scene.objects)


def test_targets_are_the_patches_that_hold_the_objects() -> None:
    for index in range(100):
        scene, question = draw("test", index)
        by_patch = {o.patch: o for o in scene.objects}
        named = [by_patch[p] for p in question.targets]
        if question.kind == "same":
            assert question.text.endswith(f" {named[0].glyph}?")
            assert named[1].glyph == question.answer
        elif question.answer in ("no", "nothing"):
            assert named == []
        else:
            facts = {question.answer, *question.text.rstrip("?").split()}
            assert named
            assert all({o.glyph, o.color} & facts for o in named)


def test_target_patches_show_the_colour_of_their_object() -> None:
    """In the pixels too: the patch of a red glyph has bright red pixels, and so on."""
    for index in range(30):
        scene, _ = draw("calibration", index)
        for item in scene.objects:
            row, column = divmod(item.patch, PATCHES)
            assert (row // 2, column // 2) == (item.row, item.column)
            y, x = row * PATCH_SIDE, column * PATCH_SIDE
            patch = scene.pixels[y : y + PATCH_SIDE, x : x + PATCH_SIDE].astype(int)
            distance = np.abs(patch - np.array(COLORS[item.color])).max(-1)
            assert (distance < 60).sum() >= 12


def test_yes_and_no_are_balanced() -> None:
    answers = Counter(sample("calibration", i).answer for i in range(4, 600, 5))
    assert set(answers) == {"yes", "no"}
    assert min(answers.values()) > 40
