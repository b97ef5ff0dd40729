"""What every error class carries: an HTTP status, a code of its own, a line in the drawing."""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter

STATUSES = range(400, 600)
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
DRAWN = re.compile(r"^\W*(\w+) +(\d{3})  (\w+)", re.MULTILINE)


def tree_of(root: type[Exception]) -> list[type[Exception]]:
    """Return the root and everything below it."""
    return [root, *(found for child in root.__subclasses__() for found in tree_of(child))]


def faults(classes: list[type[Exception]]) -> list[str]:
    """Return every class without a proper status, or without a code that is its alone."""
    said = []
    codes = Counter(getattr(error, "code", None) for error in classes)
    for error in classes:
        status = getattr(error, "http_status", None)
        if status not in STATUSES:
            said.append(f"{error.__name__} has the HTTP status {status}")
        code = vars(error).get("code")
        if not isinstance(code, str) or not CODE.fullmatch(code) or codes[code] > 1:
            said.append(f"{error.__name__} has no code of its own: {code}")
    return said


def undrawn(classes: list[type[Exception]], drawing: str) -> list[str]:
    """Return every class that the drawing lacks or tells otherwise, and every line without one."""
    drawn = set(DRAWN.findall(drawing))
    real = {(error.__name__, str(error.http_status), error.code) for error in classes}  # type: ignore[attr-defined]
    return [str(line) for line in sorted(drawn ^ real)]


def errors_elsewhere(files: dict[str, str], home: str) -> list[str]:
    """Return every class built on a built-in exception outside the error tree's own file."""
    said = []
    for path, text in files.items():
        for node in ast.walk(ast.parse(text, filename=path)):
            if isinstance(node, ast.ClassDef) and path != home:
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                if any(is_exception(base) for base in bases):
                    said.append(f"{path}:{node.lineno} {node.name} belongs in {home}")
    return said


def is_exception(name: str) -> bool:
    """Return whether a name is that of a built-in exception."""
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, BaseException)
