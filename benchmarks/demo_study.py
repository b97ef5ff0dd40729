"""The demo model and its calibration questions, as the search studies them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtr_vllm.search.answers import EngineOptions
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.converters import from_demo
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.session import Backend, open_session
from vtr_vllm.search.study import Study

MAX_TOKENS = 4  # the demo's answers are one word


@contextmanager
def demo_study(folder: Path, items: int, engines: int) -> Iterator[Study]:
    """Study the first ``items`` calibration questions; ``folder`` keeps data and journal.

    What its journal has from an earlier run is not run again. Raises as ``open_session``.
    """
    path = folder / f"calibration-{items}.jsonl"
    if not path.exists():
        from_demo("calibration", items, path)
    backend = Backend(EngineOptions("demo", MAX_TOKENS), engines)
    with open_session(backend, folder, None, "accuracy", 0, Progress()) as session:
        yield session.study(Dataset.load(path))
