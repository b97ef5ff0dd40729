"""How long a file and a function may be."""

from __future__ import annotations

import ast

FILE_LINES = 400
FUNCTION_LINES = 60


def too_long(files: dict[str, str]) -> list[str]:
    """Return every file and function at its limit or over; docstrings count, decorators do not."""
    said = []
    for path, text in files.items():
        lines = len(text.splitlines())
        if lines >= FILE_LINES:
            said.append(f"{path} has {lines} lines: fewer than {FILE_LINES} may")
        for node in ast.walk(ast.parse(text, filename=path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines >= FUNCTION_LINES:
                    said.append(
                        f"{path}:{node.lineno} {node.name} has {lines} lines: "
                        f"fewer than {FUNCTION_LINES} may"
                    )
    return said
