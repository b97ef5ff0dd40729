"""A folder of cut-outs, as small and plain as can be."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

CODES = range(0x1F400, 0x1F440)


@pytest.fixture(scope="session")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour each for the code points of the animals."""
    folder = tmp_path_factory.mktemp("art")
    for code in CODES:
        Image.new("RGBA", (32, 32), (code % 251, code % 83, 200, 255)).save(
            folder / f"{code:x}.webp", lossless=True
        )
    return folder
