"""Tables of tab-separated values, read so that no row can vanish.

The form is what pandas writes and VLMEvalKit reads: a field may stand in double quotes, and then
hold tabs, line ends and doubled quotes. A quote that opens a field and is not closed takes in the
rows behind it; where that shows, the table is refused with the line.
"""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vtr_vllm.errors import CalibrationError

__all__ = ["TsvRow", "read_tsv"]

_LARGEST_FIELD = 1 << 30  # characters; the csv module's 128 KiB are less than an image


@dataclass(frozen=True)
class TsvRow:
    """One row below the header."""

    line: int
    """Where it begins in the file, from 1."""
    values: dict[str, str]
    """Column to field; of a row with fewer fields than columns, the columns that it has."""
    surplus: int
    """Fields beyond the columns."""


def read_tsv(path: Path, required: Iterable[str]) -> tuple[tuple[str, ...], list[TsvRow]]:
    """The columns and the rows of a UTF-8 file, with or without a byte-order mark.

    Empty lines are left out. Raises CalibrationError, with the line, for what is not UTF-8, for
    quotes that do not pair, for a required column that is missing and for one that is there twice.
    """
    records = _read_records(path)
    _, header = next(records, (1, []))
    columns = tuple(header)
    if twice := sorted({column for column in columns if column and columns.count(column) > 1}):
        raise CalibrationError(
            f"{path}:1: the column {', '.join(twice)} is there more than once; keep one of each"
        )
    if missing := [column for column in required if column not in columns]:
        raise CalibrationError(
            f"{path} has no column {', '.join(missing)}; a TSV of VLMEvalKit with images is needed"
        )
    rows = [
        TsvRow(line, dict(zip(columns, fields, strict=False)), len(fields) - len(columns))
        for line, fields in records
    ]
    return columns, rows


def _read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line in which it begins, the header first."""
    tabs: list[int] = []  # of each line of the record that is being read

    def lines(file: Iterable[str]) -> Iterator[str]:
        for text in file:
            tabs.append(text.count("\t"))
            yield text

    begins, width = 1, 0
    try:
        with _wide_fields(), path.open(encoding="utf-8-sig", newline="") as file:
            for fields in csv.reader(lines(file), delimiter="\t", strict=True):
                width = width or len(fields)
                if sum(count >= max(1, width - 1) for count in tabs) > 1:
                    raise CalibrationError(
                        f"{path}:{begins}: a quote opens a field that ends in line"
                        f" {begins + len(tabs) - 1}, and lines between look like rows of their own;"
                        " close the quote, or double it inside a field in quotes"
                    )
                if fields:
                    yield begins, fields
                begins += len(tabs)
                tabs.clear()
    except csv.Error as err:
        raise CalibrationError(
            f"{path}:{begins} cannot be read as TSV ({err}); the row that begins in this line has a"
            " field that starts with a quote: close it at the field's end, and double the quotes in it"
        ) from err
    except (OSError, UnicodeDecodeError) as err:
        raise CalibrationError(
            f"{path} cannot be read as TSV ({err}); a file in UTF-8 is needed"
        ) from err


@contextmanager
def _wide_fields() -> Iterator[None]:
    limit = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
