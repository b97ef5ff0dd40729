"""One optimizer step after another whose gradients a crew computes, resumable."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from vtr_vllm.demo.world import KINDS
from vtr_vllm.training.demo.shards import Crew, Stats
from vtr_vllm.training.state import load_state, save_state

__all__ = ["CrewTrainer", "Progress", "told"]

LOG_EVERY = 25
SAVE_EVERY = 25


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    step: int = 0
    seconds: float = 0.0
    sums: Stats = field(default_factory=dict)


class CrewTrainer(ABC):
    """One training run: ``model``, ``optimizers`` and their ``rates`` are made by who inherits.

    ``work`` is the folder of the saved state, ``asked`` all that the result depends on. Raises
    ConfigurationError where the state is of a run that was asked something else.
    """

    kind: ClassVar[type[Progress]] = Progress
    model: Any
    optimizers: list[torch.optim.Optimizer]
    rates: list[list[float]]
    """Learning rate of each optimizer's groups, before warm-up and decay."""

    def __init__(self, work: Path, asked: dict[str, Any]) -> None:
        self.work, self._asked = work, asked
        self._state = load_state(work, asked)
        self.progress: Any = self.kind(**self._state["progress"] if self._state else {})

    def restore(self) -> None:
        """Take weights and optimizers over from the state, if there is one; both are made by now."""
        if self._state is None:
            return
        self.model.load_state_dict(self._state["model"], strict=False)
        for optimizer, saved in zip(self.optimizers, self._state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._state = None

    def save(self) -> None:
        """Write what the run goes on from, in one move; OSError passes through."""
        learning = {n: w.detach() for n, w in self.model.named_parameters() if w.requires_grad}
        state = {
            "asked": self._asked,
            "progress": asdict(self.progress),
            "model": learning,
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        save_state(self.work, state)

    @abstractmethod
    def last_step(self) -> int:
        """The step at which the run, or this phase of it, ends, as far as it is known by now."""

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return bool(self.progress.step >= self.last_step())

    @abstractmethod
    def jobs(self) -> Sequence[Any]:
        """The next step's share of each process."""

    @abstractmethod
    def rate_factor(self) -> float:
        """What the rates are multiplied with in the next step."""

    @abstractmethod
    def report(self, sums: Stats, steps: int, seconds: float) -> None:
        """Print the means of ``steps`` steps, and act on them."""

    def step(self, crew: Crew) -> None:
        """Take one optimizer step. Raises FloatingPointError when the loss is not a number."""
        factor = self.rate_factor()
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        stats = crew.step(self.jobs())
        if stats["loss"] != stats["loss"]:
            raise FloatingPointError(f"the loss is not a number at step {self.progress.step}")
        weights = [w for o in self.optimizers for g in o.param_groups for w in g["params"]]
        stats["gradient"] = nn.utils.clip_grad_norm_(weights, 1.0).item()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        for name, value in stats.items():
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self.progress.step += 1

    def run(self, crew: Crew) -> None:
        """Train to the end."""
        progress = self.progress
        began, steps = time.monotonic(), 0
        while not self.done:
            self.step(crew)
            steps += 1
            if progress.step % LOG_EVERY == 0 or progress.step == self.last_step():
                seconds = time.monotonic() - began
                progress.seconds += seconds
                sums, progress.sums = progress.sums, {}
                self.report(sums, steps, seconds)
                began, steps = time.monotonic(), 0
            if progress.step % SAVE_EVERY == 0:  # also where a phase has just begun
                self.save()
        self.save()


def told(sums: Stats, steps: int, names: Iterable[str] = KINDS) -> dict[str, Any]:
    """Return the means of ``steps`` steps, and of what was asked the share of right answers.

    By ``names``, and over all kinds.
    """
    line: dict[str, Any] = {k: round(v / steps, 4) for k, v in sums.items() if " " not in k}
    asked = {name: sums.get(f"asked {name}", 0.0) for name in names}
    if any(asked.values()):
        rights = {name: sums[f"right {name}"] for name in names}
        line["accuracy"] = {name: round(rights[name] / n, 3) for name, n in asked.items() if n}
        everything = sum(rights[kind] for kind in KINDS) / sum(asked[kind] for kind in KINDS)
        line["all"] = round(everything, 4)
    return line
