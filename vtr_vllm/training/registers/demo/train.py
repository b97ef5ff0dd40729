"""Train the demo model's registers: see ``python -m vtr_vllm.training.registers.demo --help``.

The drop is in force from the first step. Where it is moves: it begins where the untouched model has read
nearly all, and comes forward to its place while the registers learn to hold what the later layers ask for.
Two helping losses fade to nothing, as in the model's own training: each register names what is in its
cells, and somebody looks at the target or at its register.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.training.demo.crew_trainer import CrewTrainer, told
from vtr_vllm.training.demo.muon import Muon
from vtr_vllm.training.demo.shards import Stats
from vtr_vllm.training.registers.demo.losses import Job
from vtr_vllm.training.registers.demo.model import RegisterModel


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run; ``counts`` and ``layers``: how many registers stay, and before which
    layer all else of an image goes, drawn anew at each step."""

    registers: int = 16
    counts: tuple[int, ...] = (16, 8, 4)
    layers: tuple[int, ...] = (1, 2, 3)
    first_layer: int = 9
    moving_steps: int = 500
    steps: int = 2400
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


class Trainer(CrewTrainer):
    """One training run from the weights in the folder ``start``. ``work`` is that of the saved state.

    Raises ConfigurationError where that is of another run.
    """

    def __init__(self, recipe: Recipe, start: Path, work: Path) -> None:
        asked = {**asdict(recipe), "counts": list(recipe.counts), "layers": list(recipe.layers)}
        asked["start"] = checkpoint_digest(str(start))
        super().__init__(work, asked)
        self.recipe = recipe
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
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.restore()

    def layer(self, step: int, goal: int) -> int:
        """Before which an image goes, at a step that draws the layer ``goal``."""
        recipe = self.recipe
        left = max(0.0, 1 - step / recipe.moving_steps)
        return goal + round(left * (recipe.first_layer - goal))

    def jobs(self) -> list[Job]:
        """The next step's share of each process."""
        recipe, step = self.recipe, self.progress.step
        share = recipe.images // recipe.shards
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        kept = recipe.counts[int(torch.randint(len(recipe.counts), (), generator=draw))]
        goal = recipe.layers[int(torch.randint(len(recipe.layers), (), generator=draw))]
        helping = recipe.help_weight * max(0.0, 1 - step / recipe.help_steps)
        first = step * recipe.images
        return [
            Job(first + i * share, share, recipe.questions, kept, self.layer(step, goal), helping)
            for i in range(recipe.shards)
        ]

    def last_step(self) -> int:
        """The number of steps."""
        return self.recipe.steps

    def rate_factor(self) -> float:
        """Warm-up and decay."""
        recipe, step = self.recipe, self.progress.step
        left = (recipe.steps - step) / recipe.decay_steps
        return min(1.0, (step + 1) / recipe.warmup, max(0.02, left))

    def report(self, sums: Stats, steps: int, seconds: float) -> None:
        """Print the means since the last report."""
        progress, left = self.progress, self.recipe.steps - self.progress.step
        line: dict[str, Any] = {"step": progress.step, "seconds": round(progress.seconds)}
        line["seconds_left"] = round(left * seconds / steps)
        line["layers"] = [self.layer(progress.step - 1, goal) for goal in self.recipe.layers]
        print(json.dumps(line | told(sums, steps)), flush=True)
