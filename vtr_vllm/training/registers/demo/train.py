"""Train the demo model's registers: see ``python -m vtr_vllm.training.registers.demo --help``.

The drop is in force from the first step. Where it is moves: it begins where the untouched model has read
nearly all, and comes forward to its place while the registers learn to hold what the later layers ask for.
Two helping losses fade to nothing, as in the model's own training: each register names what is in its
cells, and somebody looks at the target or at its register.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.demo.muon import Muon
from vtr_vllm.demo.shards import Crew, Stats
from vtr_vllm.demo.world import KINDS
from vtr_vllm.training.registers.demo.losses import Job
from vtr_vllm.training.registers.demo.model import RegisterModel
from vtr_vllm.training.state import load_state, save_state

LOG_EVERY = 25
SAVE_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run; ``counts``: how many registers stay, drawn anew at each step."""

    registers: int = 16
    counts: tuple[int, ...] = (16,)
    layer: int = 3
    first_layer: int = 9
    moving_steps: int = 500
    steps: int = 1800
    warmup: int = 20
    decay_steps: int = 600
    shards: int = 2
    images: int = 8
    questions: int = 32
    rate: float = 1.5e-3
    other_rate: float = 1e-3
    register_rate: float = 3e-3
    help_weight: float = 0.4
    help_steps: int = 1000
    seed: int = 1


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    step: int = 0
    seconds: float = 0.0
    sums: Stats = field(default_factory=dict)


class Trainer:
    """One training run from the weights in the folder ``start``. ``work`` is that of the saved state.

    Raises ConfigurationError where that is of another run.
    """

    def __init__(self, recipe: Recipe, start: Path, work: Path) -> None:
        self.recipe, self.progress, self.work = recipe, Progress(), work
        torch.manual_seed(recipe.seed)
        llava = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        self.model = RegisterModel(llava, recipe.registers, recipe.counts)
        slots = list(self.model.slots.parameters())
        learning = self.model.learning()
        registers = learning.pop("registers")
        matrices = [w for w in learning.values() if w.ndim == 2]
        others = [w for w in learning.values() if w.ndim != 2]
        groups = [
            {"params": others, "lr": recipe.other_rate},
            {"params": [registers, *slots], "lr": recipe.register_rate},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, recipe.rate),
            torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.weights = [*matrices, *others, registers, *slots]
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self._asked = {**asdict(recipe), "counts": list(recipe.counts)}
        self._asked["start"] = checkpoint_digest(str(start))
        if (state := load_state(work, self._asked)) is not None:
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save(self) -> None:
        """Save the state, in one move so that a kill leaves the old or the new one."""
        learning = {n for n, w in self.model.named_parameters() if w.requires_grad}
        state = {
            "asked": self._asked,
            "progress": asdict(self.progress),
            "model": {n: w for n, w in self.model.state_dict().items() if n in learning},
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        save_state(self.work, state)

    def layer(self) -> int:
        """Before which an image goes, at this step."""
        recipe = self.recipe
        left = max(0.0, 1 - self.progress.step / recipe.moving_steps)
        return recipe.layer + round(left * (recipe.first_layer - recipe.layer))

    def jobs(self) -> list[Job]:
        """The next step's share of each process."""
        recipe, step = self.recipe, self.progress.step
        share = recipe.images // recipe.shards
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        kept = recipe.counts[int(torch.randint(len(recipe.counts), (), generator=draw))]
        helping = recipe.help_weight * max(0.0, 1 - step / recipe.help_steps)
        first = step * recipe.images
        return [
            Job(first + i * share, share, recipe.questions, kept, self.layer(), helping)
            for i in range(recipe.shards)
        ]

    def step(self, crew: Crew) -> None:
        """Take one optimizer step. Raises FloatingPointError when the loss is not a number."""
        recipe, progress = self.recipe, self.progress
        left = (recipe.steps - progress.step) / recipe.decay_steps
        factor = min(1.0, (progress.step + 1) / recipe.warmup, max(0.02, left))
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        stats = crew.step(self.jobs())
        if stats["loss"] != stats["loss"]:
            raise FloatingPointError(f"the loss is not a number at step {progress.step}")
        stats["gradient"] = nn.utils.clip_grad_norm_(self.weights, 1.0).item()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        for name, value in stats.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.step += 1

    def run(self, crew: Crew) -> None:
        """Train to the end."""
        progress, recipe = self.progress, self.recipe
        began, steps = time.monotonic(), 0
        while progress.step < recipe.steps:
            layer = self.layer()
            self.step(crew)
            steps += 1
            if progress.step % LOG_EVERY == 0 or progress.step == recipe.steps:
                seconds = time.monotonic() - began
                progress.seconds += seconds
                self._report(layer, steps, seconds / steps)
                began, steps = time.monotonic(), 0
            if progress.step % SAVE_EVERY == 0:
                self.save()
        self.save()

    def _report(self, layer: int, steps: int, seconds_each: float) -> None:
        progress, left = self.progress, self.recipe.steps - self.progress.step
        line: dict[str, Any] = {"step": progress.step, "seconds": round(progress.seconds)}
        line |= {"seconds_left": round(left * seconds_each), "layer": layer}
        sums, progress.sums = progress.sums, {}
        rights = {kind: sums[f"right {kind}"] for kind in KINDS}
        askeds = {kind: sums[f"asked {kind}"] for kind in KINDS}
        line |= {k: round(v / steps, 4) for k, v in sums.items() if " " not in k}
        line["accuracy"] = {k: round(rights[k] / askeds[k], 3) for k in KINDS if askeds[k]}
        line["all"] = round(sum(rights.values()) / sum(askeds.values()), 4)
        print(json.dumps(line), flush=True)
