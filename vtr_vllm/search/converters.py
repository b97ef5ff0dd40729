"""Calibration files out of LLaVA-style JSON, VLMEvalKit's TSV, the demo's own world, and the photo model's.

What is written, the search loads: every row goes through the checks of ``Dataset.load`` first, its
image decoded, and one that does not pass is left out by name.
"""

import ast
import base64
import binascii
import os
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from PIL import Image

from vtr_vllm.demo import CONVERSATIONS, SPLITS, Conversation, conversation, sample
from vtr_vllm.errors import CalibrationError, InvalidMedia
from vtr_vllm.image_files import encode_png, media_type
from vtr_vllm.photo import scenes as photo
from vtr_vllm.photo.parts import fetch_art
from vtr_vllm.search.answer_metrics import METRICS
from vtr_vllm.search.conversion import Conversion, Converter, Row, checked
from vtr_vllm.search.llava import find_image, read_entries, read_row, read_turns
from vtr_vllm.search.tsv import TsvRow, read_tsv

CHOICE_INSTRUCTION = "Please select the correct answer from the options above."
"""What VLMEvalKit asks below the options."""
OPEN_INSTRUCTION = "Answer the question using a single word or phrase."
"""What VLMEvalKit asks below a question without options."""

_COLUMNS = ("index", "image", "question", "answer")
_ABSENT = ("", "nan")  # a missing value as pandas writes it, or as text made of it
_LONGEST_REFERENCE = 64  # VLMEvalKit: no longer an image field is the index of the row that has it


def from_llava(
    path: Path, image_root: Path, out: Path, metric: str, every_turn: bool = False
) -> Conversion:
    """Convert a LLaVA-style JSON list: the first question about each picture and its answer.

    ``every_turn``: that and all later ones, each with what was said before it. ``image_root`` is the
    folder that the entries' image paths are relative to; the items refer to these files. Raises
    CalibrationError for a file of another form, an unknown metric, or when no entry can be used.
    """
    _check_name(metric)
    conversion = Converter(out, path)
    for number, entry in enumerate(read_entries(path), 1):
        given = entry.get("id")
        name = str(given) if isinstance(given, str | int | float) else ""
        name = name if name.strip() else f"entry-{number}"
        try:
            file = find_image(entry, image_root)
            image = _relative(file, out)
            if every_turn:
                for row in read_turns(entry, image, metric):
                    conversion.add(f"{name}, {row['kind']}", row, {image: None})
            else:
                conversion.add(name, {"image": image, **read_row(entry, metric)}, {image: None})
        except CalibrationError as err:
            conversion.skip(name, err)
    return conversion.write()


def from_vlmevalkit(
    path: Path,
    out: Path,
    metric: str,
    choice_instruction: str = CHOICE_INSTRUCTION,
    open_instruction: str = OPEN_INSTRUCTION,
) -> Conversion:
    """Convert a TSV of VLMEvalKit; its images become files in ``<out without suffix>-images``.

    Rows with options get VLMEvalKit's multiple-choice prompt and the metric option_letter, the
    others their question, the open instruction and ``metric``. Raises CalibrationError for a file
    of another form, an unknown metric, or when no row can be used.
    """
    _check_name(metric)
    columns, rows = read_tsv(path, _COLUMNS)
    images = _Images(rows)
    conversion = Converter(out, path)
    for row in rows:
        index = row.values["index"].strip()
        name = f"line-{row.line}" if index in _ABSENT else index
        try:
            if len(row.values) < len(columns) or row.surplus > 0:
                much = "fewer" if row.surplus < 0 else "more"
                raise CalibrationError(f"{much} fields than columns")
            item = _tsv_row(row.values, metric, choice_instruction, open_instruction)
            encoded = images.find(row.values["image"])
            image = f"{_image_folder(out).name}/{_image_name(encoded)}"
            conversion.add(name, {"image": image, **item}, {image: encoded})
        except CalibrationError as err:
            conversion.skip(name, err)
    return conversion.write()


def from_demo(split: str, count: int, out: Path) -> Conversion:
    """Write the first ``count`` samples of a split of the demo's world, images beside the file.

    A conversation becomes an item for each of its turns, whose ``kind`` says which it is. Raises
    CalibrationError for an unknown split or a count that it does not have.
    """
    if split not in (*SPLITS, *CONVERSATIONS):
        known = ", ".join((*SPLITS, *CONVERSATIONS))
        raise CalibrationError(f"unknown split {split!r}; there are {known}")
    conversion = Converter(out)
    folder = _image_folder(out).name
    for index in range(count):
        name = f"{split}-{index}"
        try:
            if split in CONVERSATIONS:
                _add_conversation(conversion, conversation(split, index), name, folder)
            else:
                drawn = sample(split, index)
                image = f"{folder}/{name}.png"
                row = {"image": image, **_asked(drawn.question, drawn.answer), "kind": drawn.kind}
                conversion.add(name, row, {image: encode_png(drawn.image)})
        except ValueError as err:
            raise CalibrationError(str(err)) from err
    return conversion.write()


def from_photo(split: str, count: int, parts: Path, out: Path) -> Conversion:
    """Write a question about each of the first ``count`` scenes of the photo model, images beside the file.

    ``parts``: where the packages of the cut-outs are kept. Raises CalibrationError for an unknown split,
    ConfigurationError where the cut-outs cannot be fetched.
    """
    if split not in photo.SPLITS:
        raise CalibrationError(f"unknown split {split!r}; there are {', '.join(photo.SPLITS)}")
    art = fetch_art(parts)
    conversion = Converter(out)
    for index in range(count):
        drawn = photo.scene(art, split, index)
        asked = drawn.short(index)
        name = f"{split}-{index}"
        image = f"{_image_folder(out).name}/{name}.png"
        row = {"image": image, **_asked(asked.text, asked.answer), "kind": asked.kind}
        conversion.add(name, row, {image: encode_png(drawn.image)})
    return conversion.write()


def _add_conversation(conversion: Converter, drawn: Conversation, name: str, folder: str) -> None:
    encoded = [encode_png(Image.fromarray(scene.pixels)) for scene in drawn.scenes]
    images: dict[str, bytes] = {}
    history: list[Row] = []
    for number, turn in enumerate(drawn.turns, 1):
        image = {}
        if turn.brings:
            path = f"{folder}/{name}-{len(images) + 1}.png"
            image["image"] = path
            images[path] = encoded[len(images)]
        question = turn.question
        row: Row = {**image, **_asked(question.text, question.answer), "kind": f"turn {number}"}
        if history:
            row["history"] = list(history)
        conversion.add(f"{name}-{number}", row, images)
        history.append({**image, "question": question.text, "answer": question.answer})


def _asked(question: str, answer: str) -> Row:
    return {"question": question, "answers": [answer], "metric": "exact_match"}


def _relative(file: Path, out: Path) -> str:
    """The path of a resolved file from the folder that ``out`` really lies in."""
    return Path(os.path.relpath(file, out.parent.resolve())).as_posix()


class _Images:
    """The image of each row of a TSV, which may be that of another row."""

    def __init__(self, rows: Sequence[TsvRow]) -> None:
        named = [(row.values["index"].strip(), row.values.get("image", "").strip()) for row in rows]
        self._times = Counter(index for index, _ in named)
        self._by_index = dict(named)

    def find(self, cell: str) -> bytes:
        """The encoded image that a cell has or refers to; raises CalibrationError."""
        image = cell.strip()
        if image in _ABSENT:
            raise CalibrationError("no image")
        if len(image) <= _LONGEST_REFERENCE:
            if self._times[image] > 1:
                raise CalibrationError("an image reference to an index that several rows have")
            image = self._by_index.get(image, "")
            if len(image) <= _LONGEST_REFERENCE:
                raise CalibrationError("an image reference to a row without one")
        if image.startswith("["):
            listed = _read_list(image)
            if listed is None or len(listed) != 1:
                raise CalibrationError("several images")
            image = listed[0]
        try:
            return base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as err:
            raise CalibrationError("an image that is not valid base64") from err


def _tsv_row(
    row: Mapping[str, str], metric: str, choice_instruction: str, open_instruction: str
) -> Row:
    if not _given(row, "question"):
        raise CalibrationError("no question")
    options = {c: row[c] for c in string.ascii_uppercase if _given(row, c)}
    if options:
        item = _choice_item(row, options, choice_instruction)
    else:
        item = _open_item(row, metric, open_instruction)
    return item | ({"kind": row["category"]} if _given(row, "category") else {})


def _given(row: Mapping[str, str], column: str) -> bool:
    return row.get(column, "").strip() not in _ABSENT


def _choice_item(row: Mapping[str, str], options: Mapping[str, str], instruction: str) -> Row:
    answer = row["answer"].strip()
    if answer not in options:
        raise CalibrationError("an answer that is none of the options")
    lines = [f"Hint: {row['hint']}"] if _given(row, "hint") else []
    lines += [f"Question: {row['question']}", "Options:"]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    return checked("\n".join([*lines, instruction]).strip(), [answer], "option_letter")


def _open_item(row: Mapping[str, str], metric: str, instruction: str) -> Row:
    if not _given(row, "answer"):
        raise CalibrationError("no answer")
    question = f"{row['question']}\n{instruction}".strip()
    return checked(question, _read_answers(row["answer"]), metric)


def _read_answers(text: str) -> list[str]:
    """The answers out of a cell: one text, or a list as Python prints it."""
    listed = _read_list(text)
    return [text.strip()] if listed is None else listed


def _read_list(text: str) -> list[str] | None:
    """A list as Python prints it, each part as text; None for any other text."""
    text = text.strip()
    try:
        value = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return [str(part) for part in value] if isinstance(value, list) else None


def _image_name(encoded: bytes) -> str:
    """A file name made from an image's bytes."""
    try:
        kind = media_type(encoded).partition("/")[2]
    except InvalidMedia as err:
        raise CalibrationError("an image that is not read") from err
    return f"{sha256(encoded).hexdigest()[:32]}.{kind}"


def _image_folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}-images")


def _check_name(metric: str) -> None:
    if metric not in METRICS:
        raise CalibrationError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
