"""Calibration data: questions about images with known answers, checked before they are used.

A question may be the last of a conversation.

The file is JSON Lines; docs/calibration.md describes it.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vtr_vllm.errors import CalibrationError, InvalidMedia, show
from vtr_vllm.image_files import decode_rgb, media_type
from vtr_vllm.search.calibration_line import check_line, read_line
from vtr_vllm.whole_file import whole_file

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
_LISTED = 20
_LONGEST_NAME = 500  # base64 without its prefix reads as a name


@dataclass(frozen=True)
class Turn:
    """What was asked and answered before, in the same conversation."""

    image: Path | bytes | None
    """As that of an item; None: the turn brings none."""
    question: str
    answer: str
    """What the model reads as its own answer."""
    image_hash: str | None


@dataclass(frozen=True)
class Item:
    """One question, the last of a conversation; ``Dataset.load`` makes and checks them."""

    id: str
    """Unique in its file; the line number as text where the file gives none."""
    image: Path | bytes | None
    """The image file, or the encoded image out of a data URI; None: earlier turns bring the images."""
    question: str
    """The full text sent to the model."""
    answers: tuple[str, ...]
    """The first is the reference answer; none in a file without answers."""
    metric: str | None
    """A name out of ``metrics.METRICS``, None in a file without answers."""
    kind: str | None
    """A group to report scores for, such as the type of question."""
    line: int
    """Where it stands in its file, from 1."""
    image_hash: str | None
    """SHA-256 over the decoded image: size and RGB pixels, in hex."""
    history: tuple[Turn, ...] = ()
    """The turns before the question, the first one first."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over decoded images and texts, in hex; runs of whitespace count as one."""
        return self._hash(_plain)

    @cached_property
    def exact_hash(self) -> str:
        """The same over the texts as they are sent, to the letter."""
        return self._hash(str)

    def _hash(self, of: Callable[[str], str]) -> str:
        content = f"{self.image_hash} {of(self.question)}"
        if self.history:
            turns = [[t.image_hash, of(t.question), of(t.answer)] for t in self.history]
            content = json.dumps([*turns, content])
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def image_hashes(self) -> tuple[str, ...]:
        """Of all images of the conversation, in its order."""
        hashes = [*(turn.image_hash for turn in self.history), self.image_hash]
        return tuple(found for found in hashes if found is not None)

    def load_images(self) -> list[Image.Image]:
        """Its images in RGB, as the server decodes them; raises CalibrationError."""
        return [decode_image(encoded) for encoded in self._encoded()]

    def data_uris(self) -> list[str]:
        """The images' bytes as they are, for an OpenAI request; raises CalibrationError."""
        return [data_uri(encoded) for encoded in self._encoded()]

    def _encoded(self) -> list[bytes]:
        images = [*(turn.image for turn in self.history), self.image]
        return [
            image if isinstance(image, bytes) else _read(image)
            for image in images
            if image is not None
        ]


@dataclass(frozen=True)
class Dataset:
    """The items of one file, in its order."""

    path: Path
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def answered(self) -> bool:
        """Whether the right answers are known: of all items or of none."""
        return bool(self.items[0].answers)

    @cached_property
    def most_images(self) -> int:
        """Images of the item that has most."""
        return max(len(item.image_hashes) for item in self.items)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Of each item, the number of its group: items that show an image together, or over others.

        What is right of one of a group tells of the others: they are no independent draws.
        """
        numbers: dict[str, int] = {}
        edges = [
            (index, len(self) + numbers.setdefault(image, len(numbers)))
            for index, item in enumerate(self.items)
            for image in item.image_hashes
        ]
        nodes = len(self) + len(numbers)
        rows, columns = np.array(edges).reshape(-1, 2).T
        graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(nodes, nodes))
        _, labels = connected_components(graph, directed=False)
        return tuple(labels[: len(self)].tolist())

    @cached_property
    def sha256(self) -> str:
        """Over content to the letter, answers and metric of every item, in order, in hex."""
        rows = [[item.exact_hash, item.answers, item.metric] for item in self.items]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Which data something was measured on, as plain JSON."""
        facts = {"path": str(self.path.resolve()), "sha256": self.sha256, "n": len(self)}
        return facts | {"answered": self.answered}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file and decode every image.

        Raises one CalibrationError that lists what is wrong, each with its line.
        """
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as err:
            raise CalibrationError(f"{path} cannot be read ({err}); give a JSONL file") from err
        if lines[-1] == b"":  # what follows the last line's end
            lines.pop()
        if not lines:
            raise CalibrationError(f"{path} holds no items; write one JSON object per line")
        items, problems = _read_lines(path, lines)
        _refuse(problems, f"{path} cannot be used; correct these lines")
        return cls(path, tuple(items))

    def take(self, count: int) -> Self:
        """The first ``count`` items; raises CalibrationError outside 1 .. len."""
        if not 1 <= count <= len(self):
            raise CalibrationError(
                f"cannot take {count} items of {self.path}; it has {len(self)}: give 1 to that"
            )
        return type(self)(self.path, self.items[:count])


def check_disjoint(calibration: Dataset, evaluation: Dataset) -> None:
    """Refuse evaluation items whose image is also used for calibration.

    The same image is an overlap under any question. Images are compared by their decoded
    pixels, so a lossless copy in another file or format is found; a copy that is resized or
    compressed with loss is not. Raises CalibrationError with the line of either file.
    """
    questions = {item.content_hash: item for item in reversed(calibration.items)}
    images = {found: item for item in reversed(calibration.items) for found in item.image_hashes}
    problems = []
    for item in evaluation.items:
        shared = next((found for found in item.image_hashes if found in images), None)
        if same := questions.get(item.content_hash):
            what = "the image and the question"
        elif shared is not None:
            same, what = images[shared], "the image" if len(item.image_hashes) == 1 else "an image"
        else:
            continue
        problems.append(f"{evaluation.path}:{item.line}: {what} of {calibration.path}:{same.line}")
    _refuse(problems, "calibration and evaluation data overlap; remove these items from one")


def write_items(path: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Write rows as JSON Lines, in full or not at all, and return how many; ``load`` checks them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image fully, to RGB as the server does it; raises CalibrationError."""
    with _as_calibration():
        return decode_rgb(encoded)


def data_uri(encoded: bytes) -> str:
    """An encoded image as a data URI of its true type; raises CalibrationError."""
    with _as_calibration():
        return f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode()}"


@contextmanager
def _as_calibration() -> Iterator[None]:
    """What the server would refuse is the fault of calibration data here."""
    try:
        yield
    except InvalidMedia as err:
        raise CalibrationError(str(err)) from err


class Checker:
    """Takes the items of one file in turn, each checked by itself and against those before it."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is the one that image paths are relative to."""
        self._folder = folder
        self._ids: dict[str, int] = {}
        self._contents: dict[str, int] = {}
        self._answered: bool | None = None
        self._hashes: dict[Path, str] = {}  # a picture with many questions is decoded once

    def image_hash(self, path: Path, encoded: bytes | None = None) -> str:
        """The hash of an image's pixels; ``encoded`` is what ``path`` will hold, where it is no file yet.

        Raises CalibrationError.
        """
        if path not in self._hashes:
            image = decode_image(_read(path) if encoded is None else encoded)
            self._hashes[path] = _hash_pixels(image)
        return self._hashes[path]

    def add(self, values: Mapping[str, Any], number: int) -> Item:
        """Check a line's object, the ``number``-th; raises CalibrationError and leaves it out."""
        item = self._item(values, number)
        if self._answered is None:
            self._answered = bool(item.answers)
        if self._answered != bool(item.answers):
            has, first = ("answers", "none") if item.answers else ("no answers", "some")
            raise CalibrationError(
                f"{has}, where the first good line has {first}; give every line answers and metric,"
                " or none for a label-free search"
            )
        for seen, key, what in (
            (self._ids, item.id, f"the id {show(item.id)}"),
            (self._contents, item.content_hash, "the image and question"),
        ):
            if seen.setdefault(key, number) != number:
                raise CalibrationError(f"{what} of line {seen[key]} once more")
        return item

    def _item(self, values: Mapping[str, Any], number: int) -> Item:
        check_line(values)
        image, image_hash = self._image(values)
        history = [
            Turn(found, turn["question"], turn["answer"], found_hash)
            for turn in values.get("history", ())
            for found, found_hash in [self._image(turn)]
        ]
        return Item(
            id=values.get("id", str(number)),
            image=image,
            question=values["question"],
            answers=tuple(values.get("answers", ())),
            metric=values.get("metric"),
            kind=values.get("kind"),
            line=number,
            image_hash=image_hash,
            history=tuple(history),
        )

    def _image(self, values: Mapping[str, Any]) -> tuple[Path | bytes | None, str | None]:
        """The image of a line or of an earlier turn, where it has one, and its hash."""
        if "image" not in values:
            return None, None
        image = _locate(values["image"], self._folder)
        if isinstance(image, bytes):
            return image, _hash_pixels(decode_image(image))
        return image, self.image_hash(image)


def _read_lines(path: Path, lines: list[bytes]) -> tuple[list[Item], list[str]]:
    items: list[Item] = []
    problems: list[str] = []
    checker = Checker(path.parent)
    for number, line in enumerate(lines, 1):
        try:
            items.append(checker.add(read_line(line), number))
        except CalibrationError as err:
            problems.append(f"{path}:{number}: {err}")
    return items, problems


def _locate(image: str, folder: Path) -> Path | bytes:
    if not image.startswith("data:"):
        return folder / image
    prefix = _DATA_URI.match(image)
    if prefix is None:
        raise CalibrationError(f"a data URI must start data:image/...;base64, got {show(image)}")
    try:
        return base64.b64decode(image[prefix.end() :], validate=True)
    except binascii.Error as err:
        raise CalibrationError(f"the data URI is not valid base64 ({err})") from err


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as err:  # ValueError: a zero byte in the name
        name = str(path) if len(str(path)) < _LONGEST_NAME else show(str(path))
        raise CalibrationError(
            f"the image {name} cannot be read ({type(err).__name__}); give a data URI, or a path "
            "relative to this file"
        ) from err


def _plain(text: str) -> str:
    return " ".join(text.split())


def _hash_pixels(image: Image.Image) -> str:
    return hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()


def _refuse(problems: list[str], headline: str) -> None:
    if not problems:
        return
    listed = problems[:_LISTED]
    if len(problems) > _LISTED:
        listed.append(f"and {len(problems) - _LISTED} more")
    raise CalibrationError("\n".join([f"{headline}:", *listed]))
