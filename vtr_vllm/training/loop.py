"""One training step after another on questions with known answers, resumable: what all trainings share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vtr_vllm.errors import CalibrationError, ConfigurationError
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.training.llava import Example, Llava
from vtr_vllm.training.options import TrainingOptions
from vtr_vllm.training.state import load_state, save_state

__all__ = ["Training"]

SAVE_SECONDS = 60.0
"""Between the end of a save and the next, at least, and"""
SAVES_APART = 20
"""times as long as the last save took."""
REPORTS = 100
"""Lines of a whole training, at most one a step."""
WARM_UP = 0.05  # share of the steps
LAST_RATE = 0.1  # of the learning rate, at the last step

Say = Callable[[str], None]
Options = TypeVar("Options", bound=TrainingOptions)


class Scored(Protocol):
    """What a training leaves."""

    @property
    def scores(self) -> dict[str, Any] | None:
        """Of the held-out items, as plain JSON; None of none."""


Left = TypeVar("Left", bound=Scored)


class Training(ABC, Generic[Options, Left]):
    """One training: made anew, or as its folder left it.

    Nothing random is left once the weights are made but what follows from the seed and the number of a
    step, so that a training that was stopped ends with the same weights.
    """

    told: ClassVar[Sequence[str]]
    """Names of the losses, in the order in which they are reported; the first is what is minimised."""

    def __init__(self, llava: Llava, data: Dataset, options: Options, folder: Path) -> None:
        """Raises CalibrationError and ConfigurationError."""
        if not data.answered:
            raise CalibrationError(
                f"{data.path} has no answers, and they are what is trained on; give every line answers"
                " and metric"
            )
        self.llava, self.data, self.options, self.folder = llava, data, options, folder
        self.depth = llava.geometry.layers
        self.check()
        state = load_state(folder, self._asked())
        torch.manual_seed(options.seed)
        groups = self.make()
        self.training, self.heldout = _divide(llava.examples(data), options.heldout)
        if not self.training:
            raise CalibrationError(
                f"{data.path} leaves no item to train on with --heldout {options.heldout:g}; lower it"
            )
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.step, self.losses, self._sums = 0, list[dict[str, float]](), dict[str, float]()
        self.ended = False
        self.scores: dict[str, Any] | None = None
        """Whether it has come to its end before, and with which scores."""
        if state is not None:
            self._restore(state)

    def check(self) -> None:
        """Raise ConfigurationError for options that the model cannot meet; before anything is made."""

    @abstractmethod
    def make(self) -> list[dict[str, Any]]:
        """Make what is trained; its ``params`` in groups, each with its learning rate as ``base``."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """All that is trained, by name."""

    @abstractmethod
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """The reverse."""

    @abstractmethod
    def losses_of(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Scalars of one step, by the names in ``told``."""

    @abstractmethod
    def finish(self) -> Left:
        """Score what was held out and write what was found; OSError passes through."""

    @property
    @abstractmethod
    def what(self) -> str:
        """What is trained, in words."""

    @property
    def trained(self) -> int:
        """How many weights are trained."""
        return sum(weight.numel() for weight in self.weights().values())

    def save(self) -> None:
        """Write what the training goes on from, in one move; OSError passes through."""
        state = {
            "asked": self._asked(),
            "step": self.step,
            "losses": self.losses,
            "sums": self._sums,
            "weights": self.weights(),
            "optimizer": self._optimizer.state_dict(),
        }
        save_state(self.folder, state)

    def _asked(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            **self.options.model_dump(exclude={"data"}),
            "data": self.data.sha256,
            "fingerprint": self.llava.geometry.fingerprint,
            "checkpoint": self.llava.checkpoint,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if "scores" in state:
            self.ended, self.scores = True, state["scores"]
            return
        self.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self._sums = state["step"], state["losses"], state["sums"]

    def take_step(self) -> Mapping[str, Tensor]:
        """One step, and its losses; raises ConfigurationError when what is minimised is no number."""
        losses = self.losses_of(self._batch())
        total = losses[self.told[0]]
        if not total.isfinite():
            raise ConfigurationError(
                f"the loss is {total.item()} at step {self.step}; lower --learning-rate"
            )
        self._descend(total)
        for name in self.told:
            self._sums[name] = self._sums.get(name, 0.0) + float(losses[name].detach())
        self.step += 1
        return losses

    def _descend(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        factor = self._rate_factor()
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * factor
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self._optimizer.step()

    def _rate_factor(self) -> float:
        warm_up = max(1, round(WARM_UP * self.options.steps))
        if self.step < warm_up:
            return (self.step + 1) / warm_up
        done = (self.step - warm_up) / max(1, self.options.steps - warm_up)
        return 1 - (1 - LAST_RATE) * min(1.0, done)

    def _batch(self) -> list[Example]:
        """The items of the next step: every one once, in an order of its own, before any comes again."""
        size = len(self.training)
        first = self.step * self.options.batch
        places = range(first, first + self.options.batch)
        orders = {epoch: self._order(epoch) for epoch in {place // size for place in places}}
        return [self.training[orders[place // size][place % size]] for place in places]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.training), generator=generator).tolist()
        return order

    def run(self, say: Say, stopped: Callable[[], bool]) -> bool:
        """Train to the end, and save; False where it was stopped before."""
        every = max(1, self.options.steps // REPORTS)
        began = saved = time.monotonic()
        first, apart = self.step, SAVE_SECONDS
        while self.step < self.options.steps:
            if stopped():
                self.save()
                return False
            self.take_step()
            now = time.monotonic()
            if self.step % every == 0 or self.step == self.options.steps:
                self._report(say, (now - began) / (self.step - first))
            if now - saved > apart:
                self.save()
                saved = time.monotonic()
                apart = max(SAVE_SECONDS, SAVES_APART * (saved - now))
        self.save()
        return True

    def end(self) -> Left:
        """Write what was found, and in place of the state, which is several times the weights, the
        scores alone; OSError passes through."""
        left = self.finish()
        save_state(self.folder, {"asked": self._asked(), "scores": left.scores})
        return left

    def _report(self, say: Say, seconds: float) -> None:
        since = self.step - (self.losses[-1]["step"] if self.losses else 0)
        means = {name: value / since for name, value in self._sums.items()}
        self._sums = {}
        self.losses.append({"step": self.step, **means})
        left = (self.options.steps - self.step) * seconds / 60
        told = "  ".join(f"{name} {means[name]:.4f}" for name in self.told)
        say(
            f"step {self.step}/{self.options.steps}  {told}  {seconds:.2f} s a step, {left:.0f} min left"
        )


def _divide(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held out: by image, so that none is on both sides."""
    held = [_place(example) < share for example in examples]
    pairs = list(zip(examples, held, strict=True))
    return [e for e, out in pairs if not out], [e for e, out in pairs if out]


def _place(example: Example) -> float:
    """A number in [0, 1) of an example's image."""
    return int(example.item.image_hashes[0][:8], 16) / 16**8
