"""The tiny model, and what the plain engine answers with: once for all modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modes.cases import TOKENS, mixed
from tests.modes.run import Job, Tokens, run
from tests.tiny import tiny_llava


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return tiny_llava()


@pytest.fixture(scope="session")
def plain(checkpoint: Path) -> Tokens:
    """The mixed batch, uncompiled, in one process."""
    (answers,) = run(Job(checkpoint, [mixed()]), TOKENS)
    return answers
