"""Cut-outs as small and plain as can be, in the place of those that npm brings."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vtr_vllm.photo.parts import ART

CODES = range(0x1F400, 0x1F440)
"""Of the animals."""


def write_cutouts(parts: Path) -> Path:
    """Write squares of one colour each to ``parts``, as if fetched; returns their folder."""
    folder = parts / "art"
    folder.mkdir(parents=True)
    for code in CODES:
        square = Image.new("RGBA", (32, 32), (code % 251, code % 83, 200, 255))
        square.save(folder / f"{code:x}.webp", lossless=True)
    (parts / "art.sha256").write_text(ART.sha256)
    return folder
