"""What set-up installs with uv is what pip is configured to find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.source import ROOT

SCRIPT = ROOT / "deploy" / "uv_install.py"


@pytest.fixture
def uv_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import uv_install  # type: ignore[import-not-found]

    return uv_install


def test_the_later_place_counts(uv_install) -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/wheels'",
            "download.index-url='https://other.example/'",
            "global.find-links='/old'",
            "global.index-url='https://a.example/'",
            "install.index-url='https://b.example/'",
        ]
    )
    assert uv_install.configuration(listing) == {
        "find-links": "/wheels",
        "index-url": "https://b.example/",
    }


def test_every_word_that_counts_is_said_to_uv(uv_install) -> None:
    options = {
        "extra-index-url": "https://a.example\nfile:///b",
        "find-links": "/a /b",
        "timeout": "180",
        "quiet": "1",
    }
    assert uv_install.in_uvs_words(options) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INDEX": "https://a.example file:///b",
        "UV_FIND_LINKS": "/a,/b",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_a_word_that_uv_lacks_leaves_the_work_to_pip(uv_install) -> None:
    with pytest.raises(ValueError, match="client-cert, no-binary"):
        uv_install.in_uvs_words({"no-binary": ":all:", "client-cert": "x", "quiet": "1"})


def test_pip_is_asked_and_uv_is_told(tmp_path: Path) -> None:
    """With real pip, and a program in the place of uv that says what it was told."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "index $UV_INDEX of $*"\nexit 3\n')
    for program in (python, uv):
        program.chmod(0o755)
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url = file:///there\n")
    code = "import runpy, sys; sys.executable, *sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))
    }
    run = subprocess.run(
        [sys.executable, "-c", code, str(python), str(SCRIPT), "-c", "a.txt"],
        env=kept | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 3, run.stderr
    assert f"index file:///there of pip install --python {python} -c a.txt" in run.stdout
    assert run.stdout.endswith("setup: not with uv; next with pip\n")
