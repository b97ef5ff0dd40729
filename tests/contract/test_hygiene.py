"""Texts hold nothing of the machine they were written on, and nothing put off."""

from __future__ import annotations

import pytest

from tests.contract.hygiene import forbidden_texts, read_texts
from tests.contract.source import ROOT, tracked_files


def test_texts_are_clean() -> None:
    assert forbidden_texts(read_texts(ROOT, tracked_files())) == []


@pytest.mark.parametrize(
    "text",
    [
        "weights = '/ro" + "ot/weights'",
        "see /wo" + "rk/notes.md",
        "cd /ho" + "me/someone",
        "# TO" + "DO: later",
        "FIX" + "ME",
        "<" * 7 + " ours",
        "pip install --index-url https://pypi.example.com/sim" + "ple",
        "--find-links http://mirror.example.com/w" + "hl/cpu",
    ],
)
def test_a_forbidden_text_is_found(text: str) -> None:
    assert forbidden_texts({"a.md": f"fine\n{text}\n"}) != []


@pytest.mark.parametrize(
    "text",
    [
        "https://download.pytorch.org/whl/cpu",
        "https://example.com/home/page",
        "GET /v1/models",
        "how it will work/fail, ./home/out",
        "mastodon, photodocument",
    ],
)
def test_an_ordinary_text_passes(text: str) -> None:
    assert forbidden_texts({"a.md": text}) == []


def test_the_line_is_named() -> None:
    assert forbidden_texts({"a.md": "fine\nTO" + "DO\n"})[0].startswith("a.md:2 ")
