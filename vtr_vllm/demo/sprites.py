"""Glyph and mark sprites: loading the packaged masks, and the code that drew them once.

The masks ship as plain arrays (``sprites.npz``) so that no machine's fonts can change an
image. Run ``python -m vtr_vllm.demo.sprites --fonts DIR`` to draw them again; ``DIR`` needs
the three DejaVu bold faces named in ``FONTS``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

DIGITS = tuple("0123456789")
LETTERS = tuple("ABCEFHKLMPRTWXYZ")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
GLYPHS = DIGITS + LETTERS + SHAPES
MARKS = ("hash", "zigzag", "dots", "bars", "checker", "slashes")
FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSansCondensed-Bold.ttf")
GLYPH_SIZES = (14, 15, 16)
MARK_SIZES = (10, 11, 12)
PATH = Path(__file__).with_name("sprites.npz")

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Sprites:
    """Alpha masks, 0..255, in the top left corner of their square.

    glyphs: ``[32, 9, 16, 16]``, the nine variants of each of ``GLYPHS``.
    glyph_sizes: ``[32, 9]``, side of each variant in pixels.
    marks: ``[6, 3, 12, 12]``; mark_sizes: ``[6, 3]``.
    """

    glyphs: Mask
    glyph_sizes: Mask
    marks: Mask
    mark_sizes: Mask


@lru_cache(maxsize=1)
def load() -> Sprites:
    """Return the packaged sprites."""
    with np.load(PATH, allow_pickle=False) as arrays:
        return Sprites(**{name: arrays[name] for name in Sprites.__annotations__})


def _canvas(side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", (side, side), 0)
    return image, ImageDraw.Draw(image)


def _shrink(image: Image.Image, side: int) -> Mask:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.uint8)


def _shape(name: str, side: int) -> Mask:
    n = side * 8
    image, draw = _canvas(n)
    edge = n * 0.04
    if name == "circle":
        draw.ellipse([edge, edge, n - edge, n - edge], fill=255)
    elif name == "square":
        draw.rectangle([n * 0.1, n * 0.1, n * 0.9, n * 0.9], fill=255)
    elif name == "triangle":
        draw.polygon([(n / 2, edge), (n - edge, n * 0.92), (edge, n * 0.92)], fill=255)
    elif name == "diamond":
        draw.polygon([(n / 2, 0), (n * 0.9, n / 2), (n / 2, n), (n * 0.1, n / 2)], fill=255)
    elif name == "cross":
        draw.rectangle([n * 0.36, edge, n * 0.64, n - edge], fill=255)
        draw.rectangle([edge, n * 0.36, n - edge, n * 0.64], fill=255)
    elif name == "star":
        points = []
        for i in range(10):
            radius, angle = n * (0.5 if i % 2 == 0 else 0.2), -math.pi / 2 + i * math.pi / 5
            points.append((n / 2 + radius * math.cos(angle), n * 0.53 + radius * math.sin(angle)))
        draw.polygon(points, fill=255)
    return _shrink(image, side)


def _character(char: str, side: int, font_file: Path) -> Mask:
    n = side * 6
    font = ImageFont.truetype(str(font_file), int(n * 1.32))
    left, top, right, bottom = font.getbbox(char)
    image, draw = _canvas(n)
    corner = ((n - (right - left)) / 2 - left, (n - (bottom - top)) / 2 - top)
    draw.text(corner, char, fill=255, font=font)
    return _shrink(image, side)


def _mark(name: str, side: int) -> Mask:
    n = side * 8
    image, draw = _canvas(n)
    width = int(n * 0.14)
    if name == "hash":
        for at in (0.3, 0.7):
            draw.line([n * at, 0, n * at, n], fill=255, width=width)
            draw.line([0, n * at, n, n * at], fill=255, width=width)
    elif name == "zigzag":
        for y in (0.15, 0.55):
            steps = [(n * i / 4, n * (y + 0.3 * (i % 2))) for i in range(5)]
            draw.line(steps, fill=255, width=width)
    elif name == "dots":
        for x, y in ((0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8)):
            draw.ellipse([n * (x - 0.15), n * (y - 0.15), n * (x + 0.15), n * (y + 0.15)], fill=255)
    elif name == "bars":
        for y in (0.1, 0.45, 0.8):
            draw.rectangle([0, n * y, n, n * (y + 0.14)], fill=255)
    elif name == "checker":
        draw.rectangle([0, 0, n / 2, n / 2], fill=255)
        draw.rectangle([n / 2, n / 2, n, n], fill=255)
    elif name == "slashes":
        for x in (-0.35, 0.05, 0.45):
            draw.line([n * x, n, n * (x + 0.9), 0], fill=255, width=width)
    return _shrink(image, side)


def _pack(variants: list[list[Mask]], side: int) -> tuple[Mask, Mask]:
    masks = np.zeros((len(variants), len(variants[0]), side, side), np.uint8)
    sizes = np.zeros(masks.shape[:2], np.uint8)
    for i, row in enumerate(variants):
        for j, mask in enumerate(row):
            sizes[i, j] = len(mask)
            masks[i, j, : len(mask), : len(mask)] = mask
    return masks, sizes


def draw_sprites(font_dir: Path, out: Path = PATH) -> None:
    """Draw every sprite and write ``out``.

    Raises OSError when a face of ``FONTS`` is missing from ``font_dir``.
    """
    glyphs = []
    for glyph in GLYPHS:
        if glyph in SHAPES:
            glyphs.append([_shape(glyph, side) for side in GLYPH_SIZES for _ in FONTS])
        else:
            faces = [font_dir / name for name in FONTS]
            glyphs.append([_character(glyph, side, f) for side in GLYPH_SIZES for f in faces])
    marks = [[_mark(name, side) for side in MARK_SIZES] for name in MARKS]
    glyph_masks, glyph_sizes = _pack(glyphs, max(GLYPH_SIZES))
    mark_masks, mark_sizes = _pack(marks, max(MARK_SIZES))
    np.savez_compressed(
        out, glyphs=glyph_masks, glyph_sizes=glyph_sizes, marks=mark_masks, mark_sizes=mark_sizes
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the packaged sprites again.")
    parser.add_argument("--fonts", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    draw_sprites(arguments.fonts, arguments.out)
