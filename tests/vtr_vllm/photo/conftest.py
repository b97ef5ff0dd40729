"""A folder of cut-outs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vtr_vllm.photo.cutouts import write_cutouts


@pytest.fixture(scope="session")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour each for the code points of the animals."""
    return write_cutouts(tmp_path_factory.mktemp("parts"))
