"""Several in-process engines as one evaluator: one worker process per engine."""

import atexit
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from vtr_vllm.adaptive import Prompt
from vtr_vllm.errors import EvaluationFailed, VTRError
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.search.answers import Answer, Batch, EngineOptions, Task
from vtr_vllm.search.calibration import Item
from vtr_vllm.search.devices import VISIBLE, assign, visible

if TYPE_CHECKING:
    from vtr_vllm.search.vllm_evaluator import VLLMEvaluator

_PATIENCE = 5.0
"""Seconds that an engine has to end by itself, and once more after SIGTERM."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection


class EnginePool:
    """``engines`` worker processes, each with an engine of its own: its GPUs, or a CPU core or more.

    Item by item the tasks go round the engines, so the split and with it every answer depends on
    the list of tasks alone. Raises ConfigurationError for more engines than there are GPUs, and
    EvaluationFailed when an engine does not start or ends.
    """

    def __init__(self, options: EngineOptions, engines: int = 1) -> None:
        devices = assign(visible() if engines > 1 else [], options, engines)
        cores = max(1, (os.cpu_count() or 1) // engines)
        context = get_context("spawn")  # a forked child would inherit torch's threads
        self._workers: list[_Worker] = []
        # behind multiprocessing's own, so before it: that one waits for every process
        atexit.register(self.close)
        try:
            for own in devices:
                ours, theirs = context.Pipe()
                arguments = (theirs, options, cores, own)
                # no daemon: those may not start the processes of a tensor-parallel engine
                process = context.Process(target=_serve, args=arguments, daemon=False)
                process.start()
                self._workers.append(_Worker(process, ours))
                theirs.close()
            facts: list[Any] = [self._receive(worker) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self._geometry: ModelGeometry = facts[0][0]
        self._versions: Mapping[str, str] = facts[0][1]
        self._has_cls: bool = facts[0][2]
        self._band_starts: tuple[int, ...] = facts[0][3]

    @property
    def geometry(self) -> ModelGeometry:
        """The geometry of the model."""
        return self._geometry

    @property
    def versions(self) -> Mapping[str, str]:
        """Releases, model and dtype."""
        return self._versions

    @property
    def has_cls(self) -> bool:
        """Whether the model's vision tower has a CLS token."""
        return self._has_cls

    @property
    def band_starts(self) -> tuple[int, ...]:
        """First layers of the KV bands; the same in every engine."""
        return self._band_starts

    def run(self, tasks: Sequence[Task]) -> Batch:
        """Answer every task; raises EvaluationFailed with the engine's own reason."""
        shares = share(tasks, len(self._workers))
        for worker, indices in zip(self._workers, shares, strict=True):
            with suppress(BrokenPipeError):  # an engine that has ended is reported below
                worker.pipe.send(("run", [tasks[i] for i in indices]))
        answers: list[Answer | None] = [None] * len(tasks)
        busy = room = 0.0
        # every engine is heard before a failure is raised: none is left with an unread answer
        replies = [self._reply(worker) for worker in self._workers]
        for indices, reply in zip(shares, replies, strict=True):
            if isinstance(reply, VTRError):
                raise reply
            busy, room = busy + reply.busy, room + reply.room
            for index, answer in zip(indices, reply.answers, strict=True):
                answers[index] = answer
        return Batch(tuple(answer for answer in answers if answer is not None), busy, room)

    def prompts(self, items: Sequence[Item]) -> list[Prompt]:
        """As the first engine makes them."""
        with suppress(BrokenPipeError):
            self._workers[0].pipe.send(("prompts", items))
        found: list[Prompt] = self._receive(self._workers[0])
        return found

    def close(self) -> None:
        """End the processes, by force those that do not end; an exit of the interpreter does so too."""
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            for end in (worker.process.terminate, worker.process.kill):
                worker.process.join(timeout=_PATIENCE)
                end()
            worker.process.join()

    def _reply(self, worker: _Worker) -> Batch | VTRError:
        try:
            reply: Batch = self._receive(worker)
        except VTRError as err:
            return err
        return reply

    def _receive(self, worker: _Worker) -> Any:
        try:
            reply = worker.pipe.recv()
        except (EOFError, ConnectionResetError):  # the latter if it left something unread
            worker.process.join(timeout=5)
            raise EvaluationFailed(
                f"an engine's process ended with exit code {worker.process.exitcode}; its last"
                " words are above: correct what they name and run the same command again"
            ) from None
        if isinstance(reply, str):
            raise EvaluationFailed(reply)
        return reply


def share(tasks: Sequence[Task], engines: int) -> list[list[int]]:
    """Task indices per engine; tasks of one item stay together, items go round."""
    shares: list[list[int]] = [[] for _ in range(engines)]
    engine_of: dict[str, int] = {}
    for index, task in enumerate(tasks):
        engine = engine_of.setdefault(task.item.id, len(engine_of) % engines)
        shares[engine].append(index)
    return shares


def _serve(pipe: Connection, options: EngineOptions, cores: int, devices: str | None) -> None:
    """An engine's process: start it, then answer lists of tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the search ends us, in its own order
    if devices is not None:
        os.environ[VISIBLE] = devices
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # engines must not share a core
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vtr_vllm.search.vllm_evaluator import VLLMEvaluator

        evaluator = VLLMEvaluator(options)
        facts = evaluator.geometry, evaluator.versions, evaluator.has_cls, evaluator.band_starts
        pipe.send(facts)
        while True:
            pipe.send(_attempt(evaluator, *pipe.recv()))
    except (EOFError, BrokenPipeError):
        return


def _attempt(evaluator: "VLLMEvaluator", method: str, argument: Any) -> Any:
    """What a method of the evaluator returns; why it failed, as text."""
    try:
        return getattr(evaluator, method)(argument)
    except EvaluationFailed as err:
        return str(err)
