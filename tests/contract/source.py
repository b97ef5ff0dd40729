"""What the contract tests read: the repository's files, their modules and their imports."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("vtr_vllm", "server", "benchmarks")
LOADERS = {"import_module", "__import__"}  # imports by string, when the string is a constant


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, as a dotted name; `from a import b` gives both a and a.b."""

    path: str
    line: int
    name: str

    def is_within(self, module: str) -> bool:
        """Return whether the name is `module` or lies below it."""
        return self.name == module or self.name.startswith(f"{module}.")


def code_files() -> dict[str, str]:
    """Return path -> text of every Python file that is not a test."""
    found = (path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(found)}


def tracked_files() -> list[str]:
    """Return the paths of all files that git knows, and of all new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for path in listing.stdout.splitlines() if (ROOT / path).is_file()]


@cache
def imports(path: str, text: str) -> list[Import]:
    """Return every import of a file: at its top, in functions and under TYPE_CHECKING alike."""
    found = []
    for node in ast.walk(ast.parse(text, filename=path)):
        for name in imported_names(node, package_of(path)):
            found.append(Import(path, node.lineno, name))
    return found


def imported_names(node: ast.AST, package: list[str]) -> list[str]:
    """Return the absolute names that one syntax node imports; mostly none."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        if called in LOADERS and isinstance(node.args[0].value, str):
            return [node.args[0].value.partition(":")[0]]
    return []


def package_of(path: str) -> list[str]:
    """Return the package that relative imports of a file start from."""
    return list(Path(path).parent.parts)
