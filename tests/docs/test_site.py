"""The documentation builds as a site that needs nothing from outside, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.source import ROOT
from tests.docs.pages import broken_links, texts

TEXTS = texts()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of mkdocs fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {page[5:-3] for page in TEXTS if page.startswith("docs/")}
    built = {page.relative_to(site).as_posix()[:-5] for page in site.rglob("*.html")}
    assert pages | {"changelog", "contributing"} == built - {"404"}
    assert not list(site.rglob("*.py"))


def test_the_site_fetches_nothing(site: Path) -> None:
    """Scripts, styles, fonts and pictures come from the site itself; links may lead out."""
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (page, tag)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text()), style


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(page, TEXTS[page], TEXTS) == []


def test_a_broken_link_is_found() -> None:
    text = "# A\n[a](README.md) [b](docs/none.md) [c](#a) [d](#b) [e](https://x y) [f](http:x)\n"
    broken = broken_links("README.md", text, {"README.md": text})
    assert broken == [
        "README.md: docs/none.md leads nowhere",
        "README.md: #b: no such heading",
        "README.md: http:x is no address",
    ]
