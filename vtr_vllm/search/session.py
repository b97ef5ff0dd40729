"""What a command of the search needs: the checked data, the engines, the journal, a lock."""

import fcntl
import math
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.answers import EngineOptions, Evaluator
from vtr_vllm.search.calibration import Dataset, Item
from vtr_vllm.search.journal import Journal
from vtr_vllm.search.outcomes import MEANING
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.study import BLOCK, Study
from vtr_vllm.search_options import Objective
from vtr_vllm.whole_file import whole_file

_SEARCHED = 0.6  # of the items; the rest scores what was found
LEAST_ITEMS = 2 * BLOCK
KEY_VARIABLE = "VTR_API_KEY"
"""Environment variable with the servers' API key."""


@dataclass(frozen=True)
class Backend:
    """Where candidates run: engines of our own, or running servers."""

    options: EngineOptions
    engines: int
    servers: Sequence[str] = ()

    def open(self) -> Evaluator:
        """Start the engines, or reach the servers; raises EvaluationFailed."""
        if self.servers:
            return self._reach()
        from vtr_vllm.search.engine_pool import EnginePool

        return EnginePool(self.options, self.engines)

    def _reach(self) -> Evaluator:
        from vtr_vllm.search.http_evaluator import HTTPEvaluator

        key = os.environ.get(KEY_VARIABLE)
        evaluator = HTTPEvaluator(self.servers, self.options.max_tokens, api_key=key)
        served = evaluator.versions["model"]
        if served != self.options.model:
            raise ConfigurationError(
                f"the servers serve {served}, and the model is {self.options.model}; give --model"
                f" {served}, or other servers"
            )
        return evaluator


@dataclass
class Session:
    """Engines and journal of one folder."""

    evaluator: Evaluator
    journal: Journal
    objective: Objective
    progress: Progress

    def study(self, dataset: Dataset, until: float = math.inf) -> Study:
        """A study of ``dataset`` with these engines and this journal."""
        return Study(self.evaluator, dataset, self.journal, self.objective, self.progress, until)


@contextmanager
def open_session(
    backend: Backend,
    folder: Path,
    journal: str | None,
    objective: Objective,
    seed: int,
    progress: Progress,
) -> Iterator[Session]:
    """Lock ``folder``, start the engines, open the journal; all is given back at the end.

    Without a URL the journal is ``journal.sqlite`` in the folder. Raises ConfigurationError when
    another process has the folder, and as the parts do.
    """
    with lock(folder):
        evaluator = backend.open()
        try:
            url = journal or f"sqlite:///{folder.resolve() / 'journal.sqlite'}"
            known = {**evaluator.versions, "outcomes": MEANING}
            rows = Journal(url, _search_id(folder), known, seed)
            try:
                yield Session(evaluator, rows, objective, progress)
            finally:
                rows.close()
        finally:
            evaluator.close()


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The items to search on, and the others, which score what was found; no image is in both.

    Both are in an order that their content alone decides, and so is what goes where: a candidate is given up
    by its first items, which must be like the rest however a file is sorted. Items that show an
    image together, or over others, stay together. Raises ConfigurationError for too few items, or too
    few that show images of their own.
    """
    if len(dataset) < LEAST_ITEMS:
        raise ConfigurationError(
            f"{dataset.path} has {len(dataset)} items; a search wants at least {LEAST_ITEMS}, and"
            " 1,000 tell half a point of accuracy apart"
        )
    room = max(BLOCK, int(len(dataset) * _SEARCHED) // BLOCK * BLOCK)
    groups: dict[int, list[Item]] = {}
    for group, item in zip(dataset.groups, dataset.items, strict=True):
        groups.setdefault(group, []).append(item)
    first: list[Item] = []
    rest: list[Item] = []
    for together in sorted(groups.values(), key=lambda items: min(i.content_hash for i in items)):
        (first if len(first) + len(together) <= room else rest).extend(together)
    if min(len(first), len(rest)) < BLOCK // 2:
        raise ConfigurationError(
            f"{dataset.path}: so many items share images that {len(first)} can be searched on and"
            f" {len(rest)} score what is found; give at least {BLOCK // 2} for each that share none"
        )
    return Dataset(dataset.path, tuple(first)), Dataset(dataset.path, tuple(rest))


def check_answers(objective: Objective, *datasets: Dataset) -> None:
    """Refuse data without right answers for an objective that scores by them.

    Raises ConfigurationError.
    """
    for dataset in datasets:
        if objective == "accuracy" and not dataset.answered:
            raise ConfigurationError(
                f"{dataset.path} has no answers, and the objective accuracy scores by them; search"
                " with --objective label-free, or give every line answers and metric"
            )


def _search_id(folder: Path) -> str:
    """The id under which a folder's search writes to its journal, made when it is first needed.

    No path: two hosts with one database may each have a folder of that name.
    """
    path = folder / ".search-id"
    if not path.exists():
        with whole_file(path) as file:
            file.write(uuid.uuid4().hex + "\n")
    found = path.read_text(encoding="utf-8").strip()
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise ConfigurationError(
            f"{path} holds no id of a search; remove it, and a new one is made"
        )
    return found


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends.

    Raises ConfigurationError where another one has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise ConfigurationError(
                f"another process writes to {folder}; wait for it, or give another --out"
            ) from err
        yield
