"""Training of ATP modules on questions with known answers: one step after another, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtr_vllm.atp import lora
from vtr_vllm.atp.artefact import LORA, Artefact, describe, load_state, save_state, save_tensors
from vtr_vllm.atp.llava import Example, Llava
from vtr_vllm.atp.loss import Losses, Weights, training_loss
from vtr_vllm.atp.masked_attention import MaskedPass
from vtr_vllm.atp.module import AtpModules, Masking, Shape, grid_scores
from vtr_vllm.atp.options import AtpOptions, cut_layers
from vtr_vllm.atp.score import outcomes, summary
from vtr_vllm.errors import CalibrationError, ConfigurationError
from vtr_vllm.search.calibration import Dataset

__all__ = ["Training"]

SAVE_SECONDS = 60.0
REPORTS = 100
"""Lines of a whole training, at most one a step."""
WARM_UP = 0.05  # share of the steps
LAST_RATE = 0.1  # of the learning rate, at the last step
_NAMES = ("total", "answer", "depth", "distance", "keep")

Say = Callable[[str], None]


class Training:
    """One training: made anew, or as its folder left it.

    Nothing random is left once the modules are made: which items a step sees follows from the seed and
    its number, so that a training that was stopped ends with the same weights.
    """

    def __init__(self, llava: Llava, data: Dataset, options: AtpOptions, folder: Path) -> None:
        """Raises CalibrationError and ConfigurationError."""
        if not data.answered:
            raise CalibrationError(
                f"{data.path} has no answers, and the modules are trained on them; give every line"
                " answers and metric"
            )
        self.llava, self.data, self.options, self.folder = llava, data, options, folder
        self.depth = llava.geometry.layers
        layers = cut_layers(options, self.depth)
        state = load_state(folder, self._asked())
        self.training, self.heldout = _divide(llava.examples(data), options.heldout)
        if not self.training:
            raise CalibrationError(
                f"{data.path} leaves no item to train on with --heldout {options.heldout:g}; lower it"
            )
        torch.manual_seed(options.seed)
        width = llava.state_width if options.features == "question" else 0
        self.modules = AtpModules(layers, Shape(state=width)).to(llava.device)
        self._grid = grid_scores(*llava.grid).to(llava.device)
        if options.lora is not None:
            lora.add(llava.decoder, options.lora)
        self._optimizer = torch.optim.AdamW(self._groups(), weight_decay=0.0)
        self.step, self.losses, self._sums = 0, list[dict[str, float]](), dict[str, float]()
        if state is not None:
            self._restore(state)

    def _groups(self) -> list[dict[str, Any]]:
        options = self.options
        groups = [{"params": list(self.modules.parameters()), "base": options.learning_rate}]
        if options.lora is not None:
            adapters = lora.parameters(self.llava.decoder)
            groups.append({"params": adapters, "base": options.lora_rate})
        return groups

    def _asked(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            **self.options.model_dump(exclude={"data"}),
            "data": self.data.sha256,
            "fingerprint": self.llava.geometry.fingerprint,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.llava.decoder.load_state_dict(state["lora"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self._sums = state["step"], state["losses"], state["sums"]

    def save(self) -> None:
        """Write what the training goes on from, in one move; OSError passes through."""
        state = {
            "asked": self._asked(),
            "step": self.step,
            "losses": self.losses,
            "sums": self._sums,
            "modules": self.modules.state_dict(),
            "lora": lora.tensors(self.llava.decoder),
            "optimizer": self._optimizer.state_dict(),
        }
        save_state(self.folder, state)

    def take_step(self) -> Losses:
        """One step; raises ConfigurationError when the loss is no number."""
        options = self.options
        side = self.llava.batch(self._batch())
        masking = Masking(options.mask, self._temperature(), options.n_min)
        masked = MaskedPass(self.modules, self._grid, side.rows, masking)
        logits = self.llava.logits(side, masked)
        shares = [kept.share for kept in masked.kept[1:]]
        weights = Weights(options.lambda_atp, options.lambda_target, options.target)
        losses = training_loss(
            logits, side.answers, shares, self.modules.layers, self.depth, weights
        )
        if not losses.total.isfinite():
            raise ConfigurationError(
                f"the loss is {losses.total.item()} at step {self.step}; lower --learning-rate"
            )
        self._descend(losses.total)
        for name in _NAMES:
            value = float(getattr(losses, name).detach())
            self._sums[name] = self._sums.get(name, 0.0) + value
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

    def _temperature(self) -> float:
        """Geometric from first to last step."""
        low, high = self.options.temperature, self.options.final_temperature
        done: float = self.step / max(1, self.options.steps - 1)
        return low * math.pow(high / low, done)

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

    def run(self, say: Say, stopped: Callable[[], bool]) -> Artefact | None:
        """Train to the end and write what was found; None where it was stopped before, and saved."""
        every = max(1, self.options.steps // REPORTS)
        began = saved = time.monotonic()
        first = self.step
        while self.step < self.options.steps:
            if stopped():
                self.save()
                return None
            self.take_step()
            now = time.monotonic()
            if self.step % every == 0 or self.step == self.options.steps:
                self._report(say, (now - began) / (self.step - first))
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()
        return self.finish()

    def _report(self, say: Say, seconds: float) -> None:
        since = self.step - (self.losses[-1]["step"] if self.losses else 0)
        means = {name: value / since for name, value in self._sums.items()}
        self._sums = {}
        self.losses.append({"step": self.step, **means})
        left = (self.options.steps - self.step) * seconds / 60
        told = "  ".join(f"{name} {means[name]:.4f}" for name in _NAMES)
        say(
            f"step {self.step}/{self.options.steps}  {told}  {seconds:.2f} s a step, {left:.0f} min left"
        )

    def finish(self) -> Artefact:
        """Score the held-out items and write the modules, and LoRA's weights; OSError passes through."""
        options = self.options
        found = list(outcomes(self.llava, self.modules, self.heldout, options.n_min, options.batch))
        facts = describe(
            self.llava.geometry,
            self.llava.grid,
            self.modules,
            n_min=options.n_min,
            target=options.target,
            lora=options.lora,
            data=self.data.facts(),
            options=options.model_dump(),
            losses=self.losses,
            scores=summary(found),
        )
        if options.lora is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors(self.folder / LORA, lora.tensors(self.llava.decoder))
        artefact = Artefact(self.modules, facts, self.folder)
        artefact.save()
        return artefact


def _divide(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held out: by image, so that none is on both sides."""
    held = [_place(example) < share for example in examples]
    pairs = list(zip(examples, held, strict=True))
    return [e for e, out in pairs if not out], [e for e, out in pairs if out]


def _place(example: Example) -> float:
    """A number in [0, 1) of an example's image."""
    return int(example.item.image_hashes[0][:8], 16) / 16**8
