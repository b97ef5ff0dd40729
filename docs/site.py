"""Hooks of `mkdocs build`: what the site has that does not lie in docs/.

Texts of the repository's root become pages. A link from a page to code becomes plain text, as the
site has no code; mkdocs itself warns of links within docs/ that lead nowhere.
"""

import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that come from the root."""
    for page, source in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bring the links of a page into the site."""
    path = page.file.src_uri
    source = FROM_ROOT.get(path, f"docs/{path}")
    return _LINK.sub(lambda link: site_link(link, path, source), markdown)


def site_link(link: re.Match[str], path: str, source: str) -> str:
    """The link as the page at ``path`` of the site has it; ``source`` is its text in the repository.

    A link to a file or folder that is not there stays as it is: mkdocs warns of it.
    """
    text, to, anchor = link[1], link[2], link[3] or ""
    target = normpath(f"{Path(source).parent.as_posix()}/{to}")
    pages = {origin: page for page, origin in FROM_ROOT.items()} | {"README.md": "index.md"}
    inside = pages.get(target) or (target[5:] if target.startswith("docs/") else None)
    if inside is None:
        return text if (ROOT / target).exists() else link[0]
    if (ROOT / "docs" / inside).is_dir():
        return text
    return f"[{text}]({relpath(inside, Path(path).parent.as_posix())}{anchor})"
