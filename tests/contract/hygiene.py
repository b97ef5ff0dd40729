"""What no text file of the repository may hold."""

from __future__ import annotations

import re
from pathlib import Path

# Written so that no pattern matches its own spelling here.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.:/])/(?:work|root|home|Users|tmp)/\w"),
    "a note to do later": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a conflict marker": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
}
# A package index may be named where set-up reaches for it, and only PyTorch's public one.
INDEX = re.compile(r"https?://([\w.-]+)[\w./-]*/(?:simple|whl)\b")
INDEX_HOSTS = {"download.pytorch.org"}

BINARY = {".bin", ".gif", ".ico", ".jpg", ".jpeg", ".npz", ".png", ".safetensors", ".woff2"}


def read_texts(root: Path, paths: list[str]) -> dict[str, str]:
    """Return path -> text of the files that hold text."""
    return {path: (root / path).read_text() for path in paths if Path(path).suffix not in BINARY}


def forbidden_texts(files: dict[str, str]) -> list[str]:
    """Return every place where a file holds what it may not."""
    said = []
    for path, text in files.items():
        for name, pattern in FORBIDDEN.items():
            for match in pattern.finditer(text):
                said.append(f"{path}:{line_of(text, match)} {name}: {match[0]!r}")
        for match in INDEX.finditer(text):
            if match[1] not in INDEX_HOSTS:
                said.append(f"{path}:{line_of(text, match)} a package index: {match[0]!r}")
    return said


def line_of(text: str, match: re.Match[str]) -> int:
    """Return the line number of a match, from 1."""
    return text.count("\n", 0, match.start()) + 1
