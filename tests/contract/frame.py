"""What the package's metadata and the texts around it promise."""

from __future__ import annotations

import ast
import re

TARGET = re.compile(r"^([a-z][a-z0-9-]*):", re.MULTILINE)
COMMAND = re.compile(r"(?:^|`)make ([a-z][a-z0-9-]*)", re.MULTILINE)


def broken_entry_points(groups: dict[str, dict[str, str]], files: dict[str, str]) -> list[str]:
    """Return every entry point `module:name` whose module does not define the name."""
    said = []
    for group, entries in groups.items():
        for name, target in entries.items():
            module, _, attribute = target.partition(":")
            file = module.replace(".", "/") + ".py"
            text = files.get(file) or files.get(f"server/{file}", "")
            if attribute not in top_level_names(text):
                said.append(f"{group}: {name} = {target}")
    return said


def top_level_names(text: str) -> set[str]:
    """Return the names of a module's own functions and classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(text).body if isinstance(node, kinds)}


def pins_without_reason(constraints: str) -> list[str]:
    """Return every line that pins a version and does not say why."""
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if not re.search(r"\s#\s*\w", line)]


def unknown_targets(text: str, makefile: str) -> list[str]:
    """Return every target that a text tells its reader to make and that does not exist."""
    return sorted(set(COMMAND.findall(text)) - set(TARGET.findall(makefile)))
