"""Files that are written at once or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = ["remove_leftovers", "whole_file", "whole_file_of_bytes"]

_SUFFIX = ".tmp"


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open ``path`` for writing; it takes its place, on disk, when the block ends without error.

    A reader sees the old file or the new one. OSError passes through.
    """
    with _replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file_of_bytes(path: Path) -> Iterator[BinaryIO]:
    """As ``whole_file``, for what is no text."""
    with _replacing(path) as temporary, temporary.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they wrote ``path``; nobody may be writing it."""
    for left in path.parent.glob(f".{path.name}.*{_SUFFIX}"):
        left.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    # hidden and with a suffix of its own: whoever lists the folder for files never takes it for one
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
