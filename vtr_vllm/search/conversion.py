"""What a converter does with its entries: rows that the search loads, the others left out by name."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtr_vllm.errors import CalibrationError, InvalidMedia
from vtr_vllm.search.answer_metrics import check_metric
from vtr_vllm.search.calibration import Checker, write_items

__all__ = ["Conversion", "Converter", "Row", "checked"]

Row = dict[str, Any]
"""A line of a calibration file."""


@dataclass(frozen=True)
class Conversion:
    """What became of a file's entries."""

    written: int
    skipped: Mapping[str, tuple[str, ...]]
    """Reason to the ids of the entries left out for it."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Reason to what was wrong with the first of them, where there is more to say."""

    def __str__(self) -> str:
        lines = [f"{self.written} items written"]
        for reason, ids in self.skipped.items():
            some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
            more = f"; {ids[0]}: {self.details[reason]}" if reason in self.details else ""
            lines.append(f"{len(ids)} left out: {reason} ({some}){more}")
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


class Converter:
    """Collects rows and the reasons for those left out, and writes the file at the end."""

    def __init__(self, out: Path, source: Path | None = None) -> None:
        if source is not None and source.resolve() == out.resolve():
            raise CalibrationError(f"{out} is the file to be converted; name another to write")
        self._out = out
        self._rows: list[Row] = []
        self._skipped: dict[str, list[str]] = {}
        self._details: dict[str, str] = {}
        self._ids: set[str] = set()
        self._repeats: Counter[str] = Counter()
        self._contents: set[tuple[str, ...]] = set()
        self._checker = Checker(out.parent)
        out.parent.mkdir(parents=True, exist_ok=True)  # image paths lead through it

    def add(self, name: str, row: Row, images: Mapping[str, bytes | None]) -> None:
        """Take a row under an id of its own, and write those of its images that are given.

        ``images``: by path relative to the file's folder, what it will hold; None: it is there.
        Raises CalibrationError for what the search would not load, and for a repeated question.
        """
        paths = {self._out.parent / image: encoded for image, encoded in images.items()}
        try:
            pixels = [self._checker.image_hash(path, encoded) for path, encoded in paths.items()]
        except CalibrationError as err:
            raise CalibrationError("an image that is not read") from err
        texts = [turn["question"] for turn in (*row.get("history", ()), row)]
        content = (*pixels, *(" ".join(text.split()) for text in texts))
        if content in self._contents:
            raise CalibrationError("image and question of an earlier entry")
        whole = {"id": self._free_id(name), **row}
        try:
            json.dumps(whole, ensure_ascii=False).encode()
            self._checker.add(whole, len(self._rows) + 1)
        except (CalibrationError, UnicodeEncodeError) as err:
            raise CalibrationError("what the search does not load") from err
        for path, encoded in paths.items():
            if encoded is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)
        self._contents.add(content)
        self._ids.add(whole["id"])
        self._rows.append(whole)

    def _free_id(self, name: str) -> str:
        """The name, or with a number behind it: LLaVA's own files repeat ids."""
        found = name
        while found in self._ids:
            self._repeats[name] += 1
            found = f"{name}#{self._repeats[name] + 1}"
        return found

    def skip(self, name: str, error: CalibrationError) -> None:
        """Leave an entry out."""
        reason = str(error)
        self._skipped.setdefault(reason, []).append(name)
        if isinstance(error.__cause__, CalibrationError | InvalidMedia | UnicodeError):
            self._details.setdefault(reason, str(error.__cause__))

    def write(self) -> Conversion:
        """Write the file; raises CalibrationError when there is no row."""
        skipped = {reason: tuple(names) for reason, names in self._skipped.items()}
        report = Conversion(len(self._rows), skipped, self._details)
        if not self._rows:
            raise CalibrationError(f"nothing to write to {self._out}: {report}")
        write_items(self._out, self._rows)
        return report


def checked(question: str, answers: list[str], metric: str) -> Row:
    """A row's question, answers and metric; raises CalibrationError for answers that it cannot use."""
    try:
        check_metric(metric, answers)
    except CalibrationError as err:
        raise CalibrationError(f"answers that {metric} cannot use") from err
    return {"question": question, "answers": answers, "metric": metric}
