"""A model of this project and its questions, as the search studies them."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Self

from benchmarks.rankings.samples import Subject
from vtr_vllm.photo.parts import FOLDER
from vtr_vllm.search.answer_metrics import score
from vtr_vllm.search.answers import EngineOptions, Task
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.session import Backend, open_session
from vtr_vllm.search.statistics import bootstrap_interval
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


class Asked:
    """One model, asked all questions of a data set under one candidate after the other."""

    def __init__(self, subject: Subject, data: Dataset, **engine_args: Any) -> None:
        """``engine_args``: further arguments of ``vllm.LLM``."""
        from vtr_vllm.search.vllm_evaluator import VLLMEvaluator  # loads vLLM

        self.data = data
        options = EngineOptions(subject.name, subject.answer_tokens, engine_args)
        self._evaluator = VLLMEvaluator(options)
        self.layers = self._evaluator.geometry.layers

    def about(self, data: Dataset) -> Self:
        """The same model, asked the questions of another data set."""
        other = copy(self)
        other.data = data
        return other

    def run(self, candidate: Candidate) -> tuple[list[float], list[Sequence[float]]]:
        """(scores, keep rates by layer), by question."""
        items = self.data.items
        answers = self._evaluator.run([Task(candidate, item) for item in items]).answers
        scores = [
            score(item.metric, answer.text, item.answers)
            for item, answer in zip(items, answers, strict=True)
            if item.metric is not None
        ]
        kept = [
            candidate.keep
            if each.found is None
            else [count / each.n_vision for count in each.found]
            for each in answers
        ]
        return scores, kept


def with_interval(scores: Sequence[float], groups: Sequence[int]) -> list[float]:
    """The mean of a data set's scores, and its 95% interval."""
    return [statistics.fmean(scores), *bootstrap_interval(scores, groups)]


def means(kept: Sequence[Sequence[float]]) -> list[float]:
    """The mean keep rate of each question."""
    return [statistics.fmean(rates) for rates in kept]


def percent(values: Sequence[float], sign: str = "") -> str:
    """A value and its interval, in percent."""
    value, low, high = (f"{100 * each:{sign}.1f}" for each in values)
    return f"{value} [{low}, {high}]"
