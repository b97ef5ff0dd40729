"""The texts of the repository, their headings, links, tables and fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.contract.source import ROOT, tracked_files

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\s*$")
NOT_RUN = re.compile(r"^ *<!-- not run: (?P<reason>.+) -->$")
HEADING = re.compile(r"^#{1,6} +(.+?) *$")
LINK = re.compile(r"!?\[(?:[^\]]*)\]\(([^)\s]+)\)")

SHELL = frozenset({"sh", "bash"})
PYTHON = frozenset({"python"})
GENERATED = {"docs/changelog.md": "CHANGELOG.md", "docs/contributing.md": "CONTRIBUTING.md"}


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is that of its first line of content, from 1."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    """The reason in the marker before it; None without one."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def texts() -> dict[str, str]:
    """Path -> text of every Markdown file."""
    return {path: (ROOT / path).read_text() for path in tracked_files() if path.endswith(".md")}


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page in order; a marker stands before its block, a blank between."""
    found = []
    lines = text.splitlines()
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = number, fence
            continue
        start, head = opened
        indent = len(head["indent"])
        body = "".join(f"{each[indent:]}\n" for each in lines[start + 1 : number])
        found.append(Block(page, start + 2, head["language"], body, _marker(lines, start)))
        opened = None
    assert opened is None, f"{page}: a block is not closed"
    return found


def _marker(lines: list[str], fence: int) -> str | None:
    before = [line for line in lines[max(0, fence - 2) : fence] if line.strip()]
    marker = NOT_RUN.match(before[-1]) if before else None
    return marker["reason"] if marker else None


def without_blocks(text: str) -> str:
    """A page without its fenced blocks and inline code, which hold no links."""
    kept, inside = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return re.sub(r"`[^`\n]*`", "", "\n".join(kept))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found: set[str] = set()
    inside = False
    for line in text.splitlines():
        inside ^= FENCE.match(line) is not None
        heading = None if inside else HEADING.match(line)
        if heading:
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
            numbers = (f"{slug}_{count}" for count in range(1, 100))
            found.add(slug if slug not in found else next(n for n in numbers if n not in found))
    return found


def broken_links(page: str, text: str, others: dict[str, str]) -> list[str]:
    """Links of a page to files or headings that are not there; of addresses, only the shape."""
    said = []
    for target in LINK.findall(without_blocks(text)):
        if re.match(r"[a-z]+:", target):
            if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[^\s<>\"]*)?", target):
                said.append(f"{page}: {target} is no address")
            continue
        to, _, anchor = target.partition("#")
        path = _resolve(page, to) if to else page
        path = GENERATED.get(path, path)
        if not (ROOT / path).exists():
            said.append(f"{page}: {target} leads nowhere")
        elif anchor and anchor not in anchors(others.get(path, "")):
            said.append(f"{page}: {target}: no such heading")
    return said


def _resolve(page: str, to: str) -> str:
    path = (ROOT / PurePosixPath(page).parent / to).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else to


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its own head left out."""
    lines = text.splitlines()
    start = lines.index(heading)
    table: list[list[str]] = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif table or line.startswith("#"):
            break
    return table[2:]


def read(path: str) -> str:
    """The text of a file of the repository."""
    return Path(ROOT / path).read_text()
