"""A whole search on the simulated model, as a process that may be killed at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.vtr_vllm.search.blank_figures import save_blank
from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, options
from vtr_vllm.search import pipeline
from vtr_vllm.search.answers import Batch, EngineOptions, Task
from vtr_vllm.search.output import Output
from vtr_vllm.search.pipeline import HeldOutScores
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.session import LEAST_ITEMS, Backend, open_session, split

# one trial more than are quasi-random: the Gaussian process has its say, and no more time
SETTINGS = options(budgets=[0.625, 0.5, 0.375], trials=9, items=100)
META = {
    "model": "simulated",
    "fingerprint": "6L",
    "n_vision": 16,
    "data": {"path": "items.jsonl", "sha256": "0" * 64, "n": LEAST_ITEMS},
    "seed": SETTINGS.seed,
    "objective": "accuracy",
    "tolerance": SETTINGS.tolerance,
    "versions": {"model": "simulated"},
    "command": "vtr search all",
    "date": "2025-01-01",
}
"""Of the record."""
DELAY = 0.04
"""Seconds that each run of the engine takes."""


class Reporting(SimulatedEvaluator):
    """Says so, before each run."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(layers=6, delay=DELAY, poor={3})
        self._pipe = pipe

    def run(self, tasks: Sequence[Task]) -> Batch:
        self._pipe.send_bytes(b"run")
        return super().run(tasks)


@dataclass(frozen=True)
class Simulated(Backend):
    """The simulated model in an engine's place."""

    pipe: Connection | None = None

    def open(self) -> Reporting:
        assert self.pipe is not None
        return Reporting(self.pipe)


def search(folder: Path, pipe: Connection, **changes: Any) -> None:
    """Search with everything in ``folder``, from where the last process left it; changed settings."""
    from matplotlib.figure import Figure

    Figure.savefig = save_blank
    data = items(folder, LEAST_ITEMS)
    settings = SETTINGS.model_copy(update=changes)
    backend = Simulated(EngineOptions("simulated"), engines=1, pipe=pipe)
    with open_session(backend, folder, None, "accuracy", settings.seed, Progress()) as session:
        first, rest = split(data)
        study, selection = session.study(first), session.study(rest)
        output = Output(
            folder / "schedules",
            META,
            data.sha256,
            study,
            HeldOutScores(selection),
            session.journal,
        )
        output.write(pipeline.run(study, settings, output.write), finished=True)
    pipe.send_bytes(b"end")
