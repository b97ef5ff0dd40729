"""Calibration files out of LLaVA-style JSON, VLMEvalKit's TSV, and the demo's own world."""

import ast
import base64
import binascii
import csv
import json
import os
import string
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vtr_vllm.demo import sample
from vtr_vllm.errors import CalibrationError, InvalidMedia
from vtr_vllm.image_files import decode_rgb, media_type
from vtr_vllm.search.calibration import write_items
from vtr_vllm.search.metrics import METRICS, check_metric

CHOICE_INSTRUCTION = "Please select the correct answer from the options above."
"""What VLMEvalKit asks below the options."""
OPEN_INSTRUCTION = "Answer the question using a single word or phrase."
"""What VLMEvalKit asks below a question without options."""

_COLUMNS = ("index", "image", "question", "answer")
_ABSENT = ("", "nan")  # a missing value as pandas writes it, or as text made of it
_LONGEST_REFERENCE = 64  # VLMEvalKit: no longer an image field is the index of the row that has it
_LARGEST_FIELD = 1 << 30

Row = dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """What became of a file's entries."""

    written: int
    skipped: Mapping[str, tuple[str, ...]]
    """Reason to the ids of the entries left out for it."""

    def __str__(self) -> str:
        lines = [f"{self.written} items written"]
        for reason, ids in self.skipped.items():
            some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
            lines.append(f"{len(ids)} left out: {reason} ({some})")
        return "\n".join(lines)


def from_llava(path: Path, image_root: Path, out: Path, metric: str) -> Conversion:
    """Convert a LLaVA-style JSON list: the first question of each conversation and its answer.

    ``image_root`` is the folder that the entries' image paths are relative to; the items refer
    to these files. Raises CalibrationError for a file of another form, an unknown metric, or
    when no entry can be used.
    """
    _check_name(metric)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CalibrationError(f"{path} cannot be read as JSON ({err})") from err
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CalibrationError(f"{path} must hold a JSON list of objects, as LLaVA's files do")
    conversion = _Converter(out)
    for number, entry in enumerate(entries, 1):
        name = str(entry.get("id", number))
        try:
            conversion.add(name, _llava_row(entry, image_root, out.parent, metric))
        except CalibrationError as err:
            conversion.skip(name, str(err))
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
    rows = _read_tsv(path)
    images = {row["index"]: row["image"].strip() for row in rows}
    folder = _image_folder(out)
    conversion = _Converter(out)
    for row in rows:
        try:
            if not _given(row, "question"):
                raise CalibrationError("no question")
            options = {c: row[c] for c in string.ascii_uppercase if _given(row, c)}
            if options:
                item = _choice_item(row, options, choice_instruction)
            else:
                item = _open_item(row, metric, open_instruction)
            encoded = _find_image(row["image"].strip(), images)
            item["image"] = f"{folder.name}/{_write_image(folder, encoded)}"
            if _given(row, "category"):
                item["kind"] = row["category"]
            conversion.add(row["index"], item)
        except CalibrationError as err:
            conversion.skip(row["index"], str(err))
    return conversion.write()


def from_demo(split: str, count: int, out: Path) -> Conversion:
    """Write the first ``count`` samples of a split of the demo's world, images beside the file.

    Raises CalibrationError for an unknown split or a count that it does not have.
    """
    folder = _image_folder(out)
    conversion = _Converter(out)
    for index in range(count):
        try:
            drawn = sample(split, index)
        except ValueError as err:
            raise CalibrationError(str(err)) from err
        name = f"{split}-{index}"
        folder.mkdir(parents=True, exist_ok=True)
        drawn.image.save(folder / f"{name}.png")
        row = {
            "image": f"{folder.name}/{name}.png",
            "question": drawn.question,
            "answers": [drawn.answer],
            "metric": "exact_match",
            "kind": drawn.kind,
        }
        conversion.add(name, row)
    return conversion.write()


class _Converter:
    """Collects rows and the reasons for those left out, and writes the file at the end."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rows: list[Row] = []
        self._skipped: dict[str, list[str]] = defaultdict(list)
        self._names: Counter[str] = Counter()
        self._contents: set[tuple[str, str]] = set()

    def add(self, name: str, row: Row) -> None:
        """Take a row under an id of its own; raises CalibrationError for a repeated question."""
        content = (row["image"], " ".join(row["question"].split()))
        if content in self._contents:
            raise CalibrationError("image and question of an earlier entry")
        self._contents.add(content)
        self._names[name] += 1
        again = self._names[name]  # LLaVA's own files repeat ids
        self._rows.append({"id": name if again == 1 else f"{name}#{again}", **row})

    def skip(self, name: str, reason: str) -> None:
        """Leave an entry out."""
        self._skipped[reason].append(name)

    def write(self) -> Conversion:
        """Write the file; raises CalibrationError when there is no row."""
        skipped = {reason: tuple(names) for reason, names in self._skipped.items()}
        report = Conversion(len(self._rows), skipped)
        if not self._rows:
            raise CalibrationError(f"nothing to write to {self._out}: {report}")
        write_items(self._out, self._rows)
        return report


def _llava_row(entry: Mapping[str, Any], image_root: Path, folder: Path, metric: str) -> Row:
    image = entry.get("image")
    if not image:
        raise CalibrationError("no image")
    if not isinstance(image, str):
        raise CalibrationError("several images")
    if not (image_root / image).is_file():
        raise CalibrationError(f"no such image file under {image_root}")
    match entry.get("conversations"):
        case [{"from": "human", "value": str(asked)}, {"from": "gpt", "value": str(answer)}, *_]:
            pass
        case _:
            raise CalibrationError("no question of a human with an answer")
    if asked.count("<image>") > 1:
        raise CalibrationError("several images")
    question = asked.replace("<image>", "").strip()
    if not question:
        raise CalibrationError("no question")
    return {
        "image": Path(os.path.relpath(image_root.resolve() / image, folder.resolve())).as_posix(),
        **_checked(question, [answer.strip()], metric),
    }


def _read_tsv(path: Path) -> list[dict[str, str]]:
    limit = csv.field_size_limit(_LARGEST_FIELD)  # the usual 128 KiB are less than an image
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            columns = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise CalibrationError(f"{path} cannot be read as TSV ({err})") from err
    finally:
        csv.field_size_limit(limit)
    missing = [column for column in _COLUMNS if column not in columns]
    if any(None in row for row in rows):
        raise CalibrationError(f"{path} has rows with more fields than columns; quote their tabs")
    if missing:
        raise CalibrationError(
            f"{path} has no column {', '.join(missing)}; a TSV of VLMEvalKit with images is needed"
        )
    return rows


def _given(row: Mapping[str, str], column: str) -> bool:
    return row.get(column, "").strip() not in _ABSENT


def _choice_item(row: Mapping[str, str], options: Mapping[str, str], instruction: str) -> Row:
    answer = row["answer"].strip()
    if answer not in options:
        raise CalibrationError("an answer that is none of the options")
    lines = [f"Hint: {row['hint']}"] if _given(row, "hint") else []
    lines += [f"Question: {row['question']}", "Options:"]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    return _checked("\n".join([*lines, instruction]).strip(), [answer], "option_letter")


def _open_item(row: Mapping[str, str], metric: str, instruction: str) -> Row:
    if not _given(row, "answer"):
        raise CalibrationError("no answer")
    question = f"{row['question']}\n{instruction}".strip()
    return _checked(question, _read_answers(row["answer"]), metric)


def _read_answers(text: str) -> list[str]:
    """The answers out of a cell: one text, or a list as Python prints it."""
    text = text.strip()
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError):
        return [text]
    return [str(answer) for answer in value] if isinstance(value, list) else [text]


def _find_image(image: str, images: Mapping[str, str]) -> bytes:
    """The encoded image of a cell, which may refer to another row; raises CalibrationError."""
    if image in _ABSENT:
        raise CalibrationError("no image")
    if len(image) <= _LONGEST_REFERENCE:
        image = images.get(image, "")
        if len(image) <= _LONGEST_REFERENCE:
            raise CalibrationError("an image reference to a row without one")
    if image.startswith("["):
        raise CalibrationError("several images")
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as err:
        raise CalibrationError("an image that is not valid base64") from err


def _write_image(folder: Path, encoded: bytes) -> str:
    """Write an image under a name made from its bytes, and return the name."""
    try:
        decode_rgb(encoded)
        kind = media_type(encoded).partition("/")[2]
    except InvalidMedia as err:
        raise CalibrationError("an image that does not decode") from err
    name = f"{sha256(encoded).hexdigest()[:32]}.{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded)
    return name


def _image_folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}-images")


def _check_name(metric: str) -> None:
    if metric not in METRICS:
        raise CalibrationError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")


def _checked(question: str, answers: list[str], metric: str) -> Row:
    try:
        check_metric(metric, answers)
    except CalibrationError as err:
        raise CalibrationError(f"answers that {metric} cannot use") from err
    return {"question": question, "answers": answers, "metric": metric}
