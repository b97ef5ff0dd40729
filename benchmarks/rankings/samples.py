"""The models that are measured, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtr_vllm import demo
from vtr_vllm.own_models import OWN_MODELS
from vtr_vllm.photo.parts import fetch_art
from vtr_vllm.photo.scenes import scene
from vtr_vllm.search.conversion import Conversion
from vtr_vllm.search.converters import from_demo, from_photo

__all__ = ["SUBJECTS", "Shown", "Subject"]


@dataclass(frozen=True)
class Shown:
    """One question about one picture."""

    image: Image.Image
    question: str
    targets: tuple[int, ...]
    """Vision tokens that show what it is about, row by row; none where nothing is there."""


@dataclass(frozen=True)
class Subject:
    """A model of this project, and its questions by split."""

    name: str
    answer_tokens: int
    """Longest answer."""
    shown: Callable[[Path, str, int], Iterator[Shown]]
    """(folder of the parts, split, how many)."""
    convert: Callable[[Path, str, int, Path], Conversion]
    """(folder of the parts, split, how many, file): the same questions as calibration data."""

    @property
    def checkpoint(self) -> Path:
        """Its folder; raises ConfigurationError where there is none."""
        own = OWN_MODELS[self.name]
        own.check()
        return own.checkpoint


def _of_demo(_: Path, split: str, count: int) -> Iterator[Shown]:
    for index in range(count):
        drawn = demo.sample(split, index)
        yield Shown(drawn.image, drawn.question, drawn.targets)


def _of_photo(parts: Path, split: str, count: int) -> Iterator[Shown]:
    art = fetch_art(parts)
    for index in range(count):
        drawn = scene(art, split, index)
        asked = drawn.short(index)
        yield Shown(drawn.image, asked.text, drawn.patches(asked))


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("demo", 4, _of_demo, lambda _, split, count, out: from_demo(split, count, out)),
        Subject(
            "photo",
            8,
            _of_photo,
            lambda parts, split, count, out: from_photo(split, count, parts, out),
        ),
    )
}
