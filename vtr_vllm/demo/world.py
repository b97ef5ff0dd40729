"""The synthetic world: crowded scenes of coloured glyphs, and questions about them.

Every draw comes from ``numpy.random.RandomState``, whose stream is frozen for good, and all
pixel arithmetic is on integers, so an image depends on its seed alone and not on the machine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vtr_vllm.demo.sprites import DIGITS, GLYPHS, LETTERS, MARKS, load

IMAGE_SIDE = 168
PATCH_SIDE = 14
PATCHES = IMAGE_SIDE // PATCH_SIDE
VISION_TOKENS = PATCHES * PATCHES
CELLS = 6

COLORS = {
    "red": (230, 35, 35),
    "green": (45, 190, 55),
    "blue": (60, 90, 250),
    "yellow": (245, 225, 50),
    "orange": (250, 135, 15),
    "purple": (165, 60, 215),
    "cyan": (60, 220, 235),
    "white": (240, 240, 240),
}
COLOR_NAMES = tuple(COLORS)
ROWS = ("first", "second", "third", "fourth", "fifth", "sixth")
COLUMNS = ("one", "two", "three", "four", "five", "six")
CATEGORIES = ("digit", "letter", "shape")
NOTHING = "nothing"
KINDS = ("color", "at", "same", "which", "exist")

CHARACTERS = len(DIGITS) + len(LETTERS)
MOST_CHARACTERS = CHARACTERS - 2  # so that "Is there a ..?" can always be answered with "no"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Density:
    """How crowded a scene is: inclusive ranges of counts, and noise in grey levels (+-)."""

    objects: tuple[int, int]
    marks: tuple[int, int]
    noise: int


@dataclass(frozen=True)
class Object:
    """A glyph that questions ask about. ``patch`` indexes the 12 x 12 patches row by row."""

    row: int
    column: int
    glyph: str
    color: str
    patch: int

    @property
    def category(self) -> str:
        """One of ``CATEGORIES``."""
        return category(self.glyph)


@dataclass(frozen=True)
class Mark:
    """A bright squiggle that no question asks about."""

    name: str
    color: str
    patch: int


@dataclass(frozen=True)
class Scene:
    """``pixels``: uint8 ``[168, 168, 3]`` RGB."""

    pixels: Pixels
    objects: tuple[Object, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer.

    targets: patches one has to look at, in the order of the hops (empty for a "no").
    facts: the words that the answer follows from, those of the question and, for the
    two-hop kind, the colour found on the way.
    """

    text: str
    answer: str
    kind: str
    targets: tuple[int, ...]
    facts: tuple[str, ...]


def category(glyph: str) -> str:
    """Return the category word of a glyph."""
    return "digit" if glyph in DIGITS else "letter" if glyph in LETTERS else "shape"


@lru_cache(maxsize=1)
def _backgrounds(count: int = 128) -> NDArray[np.int16]:
    """Dark canvases with lines and dots, ``[count, 168, 168, 3]``."""
    rng = RandomState(7)
    out = np.empty((count, IMAGE_SIDE, IMAGE_SIDE, 3), np.int16)
    for i in range(count):
        coarse = rng.randint(0, 60, (6, 6, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(rng.randint(6, 14)):
            shade = tuple(int(v) for v in rng.randint(30, 105, 3))
            x, y = (int(v) for v in rng.randint(0, IMAGE_SIDE, 2))
            dx, dy = (int(v) for v in rng.randint(-45, 46, 2))
            draw.line([x, y, x + dx, y + dy], fill=shade, width=int(rng.randint(1, 3)))
        for _ in range(rng.randint(5, 20)):
            shade = tuple(int(v) for v in rng.randint(30, 110, 3))
            x, y = (int(v) for v in rng.randint(0, IMAGE_SIDE, 2))
            r = int(rng.randint(1, 3))
            draw.ellipse([x - r, y - r, x + r, y + r], fill=shade)
        out[i] = np.asarray(image, np.int16)
    return out


@lru_cache(maxsize=8)
def _noise_fields(level: int, count: int = 8) -> NDArray[np.int16]:
    """Sums of three uniform draws (close to a bell), sigma ``level``, ``[count, 168, 168, 3]``."""
    draws = RandomState(3).randint(-1000, 1001, (count, 3, IMAGE_SIDE, IMAGE_SIDE, 3))
    return (draws.sum(1) * level // 1000).astype(np.int16)


def _canvas(rng: RandomState, noise: int) -> NDArray[np.int32]:
    backgrounds, fields = _backgrounds(), _noise_fields(noise)
    picture = backgrounds[rng.randint(len(backgrounds))]
    flip_x, flip_y = rng.randint(2, size=2)
    picture = picture[:: 1 - 2 * int(flip_y), :: 1 - 2 * int(flip_x)]
    shift = rng.randint(IMAGE_SIDE, size=3)
    picture = np.roll(picture, (int(shift[0]), int(shift[1])), (0, 1))
    field = np.roll(fields[rng.randint(len(fields))], int(shift[2]), 0)
    return (picture + field).astype(np.int32)


def _paint(
    canvas: NDArray[np.int32],
    mask: Pixels,
    patch: int,
    jitter: NDArray[np.int64],
    color: str,
    tint: NDArray[np.int64],
) -> None:
    """Blend ``mask`` in a tinted ``color`` over the middle of ``patch``, moved by ``jitter``."""
    side = len(mask)
    row, column = divmod(patch, PATCHES)
    spare = (PATCH_SIDE - side) // 2
    y = min(max(row * PATCH_SIDE + spare + int(jitter[0]), 0), IMAGE_SIDE - side)
    x = min(max(column * PATCH_SIDE + spare + int(jitter[1]), 0), IMAGE_SIDE - side)
    shade = np.clip(np.array(COLORS[color]) * int(tint[0]) // 100 + tint[1:], 0, 255)
    alpha = mask[:, :, None].astype(np.int32)
    area = canvas[y : y + side, x : x + side]
    area[:] = (area * (255 - alpha) + shade.astype(np.int32) * alpha + 127) // 255


def _tints(rng: RandomState, count: int) -> NDArray[np.int64]:
    """Per item: brightness in per cent, then an offset for each channel, ``[count, 4]``."""
    bright = rng.randint(85, 106, (count, 1))
    return np.concatenate([bright, rng.randint(-14, 15, (count, 3))], 1)


def _draw_glyphs(rng: RandomState, count: int) -> list[int]:
    """Glyph numbers: characters never repeat within a scene, shapes may."""
    shapes = int(rng.binomial(count, 0.35))
    shapes = max(shapes, count - MOST_CHARACTERS)
    kinds = rng.permutation(len(GLYPHS) - CHARACTERS)[: int(rng.randint(2, 7))]
    characters = rng.permutation(CHARACTERS)[: count - shapes]
    chosen = np.concatenate([characters, CHARACTERS + kinds[rng.randint(len(kinds), size=shapes)]])
    return [int(g) for g in rng.permutation(chosen)]


def _draw_colors(rng: RandomState, count: int) -> list[int]:
    """Colour numbers. Two to four colours are on exactly two objects each.

    Left to chance a crowded scene would rarely have such a pair, and "What has the same
    color as ..?" needs one.
    """
    order = rng.permutation(len(COLOR_NAMES))
    pairs = min(int(rng.randint(2, 5)), count // 4)
    rest = order[pairs:]
    others = rest[rng.randint(len(rest), size=count - 2 * pairs)]
    return [int(c) for c in rng.permutation(np.concatenate([order[:pairs], order[:pairs], others]))]


def draw_scene(rng: RandomState, density: Density) -> Scene:
    """Draw a scene. Every object is alone in its 28-pixel cell and centred on one patch of it."""
    sprites = load()
    canvas = _canvas(rng, density.noise)
    count = int(rng.randint(density.objects[0], density.objects[1] + 1))
    cells = rng.permutation(CELLS * CELLS)[:count]
    glyphs, colors = _draw_glyphs(rng, count), _draw_colors(rng, count)
    corner = rng.randint(2, size=(count, 2))
    objects = []
    for i, cell in enumerate(cells):
        row, column = divmod(int(cell), CELLS)
        patch = (2 * row + int(corner[i, 0])) * PATCHES + 2 * column + int(corner[i, 1])
        name = COLOR_NAMES[colors[i]]
        objects.append(Object(row, column, GLYPHS[glyphs[i]], name, patch))
    marks = _draw_marks(rng, canvas, density.marks, {o.patch for o in objects})
    variant = rng.randint(sprites.glyphs.shape[1], size=count)
    jitter, tints = rng.randint(-1, 2, (count, 2)), _tints(rng, count)
    for i, item in enumerate(objects):
        side = int(sprites.glyph_sizes[glyphs[i], variant[i]])
        mask = sprites.glyphs[glyphs[i], variant[i], :side, :side]
        _paint(canvas, mask, item.patch, jitter[i], item.color, tints[i])
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(objects), marks)


def _draw_marks(
    rng: RandomState, canvas: NDArray[np.int32], bounds: tuple[int, int], taken: set[int]
) -> tuple[Mark, ...]:
    """Paint marks on patches that hold no object; objects are painted over them later."""
    sprites = load()
    free = [int(p) for p in rng.permutation(VISION_TOKENS) if int(p) not in taken]
    count = int(rng.randint(bounds[0], bounds[1] + 1))
    kinds = rng.randint(len(MARKS), size=count)
    variant = rng.randint(sprites.marks.shape[1], size=count)
    colors = rng.randint(len(COLOR_NAMES), size=count)
    jitter, tints = rng.randint(-1, 2, (count, 2)), _tints(rng, count)
    marks = []
    for i in range(count):
        side = int(sprites.mark_sizes[kinds[i], variant[i]])
        mask = sprites.marks[kinds[i], variant[i], :side, :side]
        mark = Mark(MARKS[kinds[i]], COLOR_NAMES[colors[i]], free[i])
        _paint(canvas, mask, mark.patch, jitter[i], mark.color, tints[i])
        marks.append(mark)
    return tuple(marks)


def ask(rng: RandomState, scene: Scene, kind: str) -> Question | None:
    """Draw a question of ``kind``, or None when the scene allows none.

    Raises KeyError for a kind not in ``KINDS``.
    """
    return _ASKERS[kind](rng, scene.objects)


def _ask_color(rng: RandomState, objects: tuple[Object, ...]) -> Question | None:
    counts = Counter(o.glyph for o in objects)
    single = [o for o in objects if counts[o.glyph] == 1]
    if not single:
        return None
    o = single[rng.randint(len(single))]
    return Question(f"What color is the {o.glyph}?", o.color, "color", (o.patch,), (o.glyph,))


def _ask_at(rng: RandomState, objects: tuple[Object, ...]) -> Question | None:
    grid = {(o.row, o.column): o for o in objects}
    cells = [(r, c) for r in range(CELLS) for c in range(CELLS)]
    empty = [cell for cell in cells if cell not in grid]
    if empty and rng.randint(100) < 6:
        row, column = empty[rng.randint(len(empty))]
    else:
        picked = objects[rng.randint(len(objects))]
        row, column = picked.row, picked.column
    found = grid.get((row, column))
    text = f"What is in the {ROWS[row]} row, column {COLUMNS[column]}?"
    answer, targets = (found.glyph, (found.patch,)) if found else (NOTHING, ())
    return Question(text, answer, "at", targets, (ROWS[row], COLUMNS[column]))


def _ask_same(rng: RandomState, objects: tuple[Object, ...]) -> Question | None:
    counts = Counter(o.glyph for o in objects)
    by_color: dict[str, list[Object]] = defaultdict(list)
    for o in objects:
        by_color[o.color].append(o)
    twos = [v for v in by_color.values() if len(v) == 2]
    pairs = [(a, b) for v in twos for a, b in (v, v[::-1]) if counts[a.glyph] == 1]
    if not pairs:
        return None
    a, b = pairs[rng.randint(len(pairs))]
    text = f"What has the same color as the {a.glyph}?"
    return Question(text, b.glyph, "same", (a.patch, b.patch), (a.glyph, a.color))


def _ask_which(rng: RandomState, objects: tuple[Object, ...]) -> Question | None:
    groups: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for o in objects:
        groups[o.category, o.color].append(o)
    single = [v[0] for v in groups.values() if len(v) == 1]
    if not single:
        return None
    o = single[rng.randint(len(single))]
    text = f"Which {o.category} is {o.color}?"
    return Question(text, o.glyph, "which", (o.patch,), (o.category, o.color))


def _ask_exist(rng: RandomState, objects: tuple[Object, ...]) -> Question | None:
    present = {o.glyph for o in objects}
    if rng.randint(2):
        glyph = objects[rng.randint(len(objects))].glyph
    else:
        absent = [g for g in GLYPHS if g not in present]
        glyph = absent[rng.randint(len(absent))]
    targets = tuple(o.patch for o in objects if o.glyph == glyph)
    answer = "yes" if targets else "no"
    return Question(f"Is there a {glyph}?", answer, "exist", targets, (glyph,))


_ASKERS = {
    "color": _ask_color,
    "at": _ask_at,
    "same": _ask_same,
    "which": _ask_which,
    "exist": _ask_exist,
}
