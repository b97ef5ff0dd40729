"""A model of this project and its questions, as the search studies them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rankings.samples import Subject
from vtr_vllm.photo.parts import FOLDER
from vtr_vllm.search.answers import EngineOptions
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.session import Backend, open_session
from vtr_vllm.search.study import Study


def questions(
    subject: Subject, split: str, count: int, folder: Path, parts: Path = FOLDER
) -> Dataset:
    """Return the first ``count`` questions of a split, out of a file in ``folder``: made once."""
    path = folder / f"{split}-{count}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subject.convert(parts, split, count, path)
    return Dataset.load(path)


@contextmanager
def open_study(subject: Subject, data: Dataset, folder: Path, engines: int) -> Iterator[Study]:
    """Study ``data`` with the subject's model; ``folder`` keeps the journal.

    What its journal has from an earlier run is not run again. Raises as ``open_session``.
    """
    backend = Backend(EngineOptions(subject.name, subject.answer_tokens), engines)
    with open_session(backend, folder, None, "accuracy", 0, Progress()) as session:
        yield session.study(data)
