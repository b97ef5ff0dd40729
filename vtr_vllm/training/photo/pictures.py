"""What the photo model is trained on: pictures, each with questions, its tower features kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.image_files import decode_rgb
from vtr_vllm.photo.delta import PARTS
from vtr_vllm.photo.parts import ART
from vtr_vllm.photo.scenes import Thing, scene

__all__ = ["Features", "Picture", "Question", "digest", "photographs", "scenes"]

_AT_ONCE = 8  # pictures through the tower
_LOOKED_AT = 16  # pictures whose pixels are in a digest


@dataclass(frozen=True)
class Question:
    """One question about a picture."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """A picture and all that is asked about it."""

    load: Callable[[], Image.Image]
    questions: tuple[Question, ...]
    name: str
    """Which it is; of a file a digest of its bytes."""
    things: tuple[Thing, ...] = ()
    """What stands where; of scenes only."""


def scenes(art: Path, split: str, count: int) -> list[Picture]:
    """Return the first ``count`` scenes of a split."""

    def picture(number: int) -> Picture:
        found = scene(art, split, number)
        questions = tuple(Question(q.kind, q.text, q.answer) for q in found.questions)
        return Picture(
            lambda: scene(art, split, number).image, questions, f"{split} {number}", found.things
        )

    return [picture(number) for number in range(count)]


def photographs(path: Path, kind: str) -> list[Picture]:
    """Return the pictures of a file of JSON Lines with ``image``, ``question`` and ``answers``.

    Several answers to one question are said one after another, words joined by spaces; of an item with a
    ``metric``, as searches read them, answers are alternatives, and the first is said. Raises
    ConfigurationError.
    """
    asked: dict[str, list[Question]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        image, question = _read(line, f"{path}, line {number}", kind)
        asked.setdefault(image, []).append(question)
    found = []
    for name, questions in sorted(asked.items()):
        encoded = (path.parent / name).read_bytes()
        load = partial(_decode, path.parent / name)
        found.append(Picture(load, tuple(questions), hashlib.sha256(encoded).hexdigest()))
    return found


def _read(line: str, place: str, kind: str) -> tuple[str, Question]:
    try:
        item = json.loads(line)
        image, text, answers = item["image"], item["question"], item["answers"]
        texts = [image, text, *answers]
        if isinstance(answers, str) or not answers or not all(isinstance(t, str) for t in texts):
            raise TypeError("answers are a list of at least one text, all else is text")
    except (ValueError, KeyError, TypeError) as err:
        raise ConfigurationError(
            f"{place}: not an object with image, question and answers ({type(err).__name__}: {err})"
        ) from err
    said = answers[0] if "metric" in item else ", ".join(answers)
    return image, Question(kind, text.replace("_", " "), said.replace("_", " "))


def _decode(path: Path) -> Image.Image:
    return decode_rgb(path.read_bytes())


def digest(pictures: Sequence[Picture]) -> str:
    """SHA-256 over what is asked about which pictures, in order, and over what they and the model are made of.

    Of a few pictures the pixels are read too, so that scenes drawn by other code are others.
    """
    told = [
        [p.name, [astuple(q) for q in p.questions], [astuple(t) for t in p.things]]
        for p in pictures
    ]
    found = hashlib.sha256(json.dumps([PARTS, ART.sha256, told]).encode())
    for picture in pictures[:: max(1, len(pictures) // _LOOKED_AT)]:
        found.update(picture.load().tobytes())
    return found.hexdigest()


class Features:
    """The tower's last states of pictures, float16 ``[pictures, N, width]``, in a file that grows."""

    def __init__(self, path: Path, count: int, tokens: int, width: int) -> None:
        fresh = not path.exists()
        self._rows: np.ndarray = np.memmap(
            path, np.float16, "w+" if fresh else "r+", shape=(count, tokens, width)
        )
        self._done = path.with_suffix(".done")
        self.done = 0 if fresh or not self._done.exists() else int(self._done.read_text())

    def __getitem__(self, index: int) -> Tensor:
        """Float32 ``[N, width]``."""
        return torch.from_numpy(self._rows[index].astype(np.float32))

    def fill(self, model: Any, processor: Any, pictures: Sequence[Picture]) -> Iterator[int]:
        """Compute what is missing; yields how many are there."""
        for batch in _parts(range(self.done, len(pictures)), _AT_ONCE):
            images = [pictures[i].load() for i in batch]
            pixels = processor.image_processor(images=images, return_tensors="pt").pixel_values
            with torch.no_grad():
                tower = model.model.vision_tower
                states = tower(pixels.to(model.device, model.dtype)).last_hidden_state[:, 1:]
            self._rows[batch[0] : batch[-1] + 1] = states.float().cpu().numpy()
            self._rows.flush()  # type: ignore[attr-defined]
            self.done = batch[-1] + 1
            self._done.write_text(str(self.done))
            yield self.done


def _parts(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    wanted = list(numbers)
    for first in range(0, len(wanted), size):
        yield wanted[first : first + size]
