"""What is ranked in Transformers is what the engine is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rankings.samples import SUBJECTS
from tests.vtr_vllm.photo.cutouts import write_cutouts
from vtr_vllm.photo import parts
from vtr_vllm.search.calibration import Dataset


@pytest.mark.parametrize("name", SUBJECTS)
def test_both_halves_ask_the_same(name: str, tmp_path: Path) -> None:
    write_cutouts(tmp_path)
    subject = SUBJECTS[name]
    shown = list(subject.shown(tmp_path, "test", 6))
    subject.convert(tmp_path, "test", 6, tmp_path / "test.jsonl")
    items = Dataset.load(tmp_path / "test.jsonl").items
    assert [each.question for each in shown] == [item.question for item in items]
    for each, item in zip(shown, items, strict=True):
        assert item.load_images()[0].tobytes() == each.image.convert("RGB").tobytes()
        side = {"demo": 12, "photo": parts.SIDE // parts.PATCH}[name]
        assert all(0 <= target < side * side for target in each.targets)
