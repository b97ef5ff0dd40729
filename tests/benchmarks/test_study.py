"""Questions are written once, and read from then on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rankings.samples import SUBJECTS
from benchmarks.study import questions


def test_a_file_of_questions_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert len(questions(SUBJECTS["demo"], "test", 3, folder)) == 3
    (file,) = folder.glob("*.jsonl")
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert len(questions(SUBJECTS["demo"], "test", 3, folder)) == 1
