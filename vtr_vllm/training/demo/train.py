"""Train the demo model from scratch: ``python -m vtr_vllm.training.demo``.

Phase 1 teaches tower and projector to name what each patch shows. Phase 2 trains everything
on questions, at first in thinner scenes, with helping losses that fade to nothing. Phase 3 puts the
questions into conversations, with the same losses again; ``--talk`` begins there, with the weights of an earlier run. One seed,
no steering: the stages switch on measured training accuracy. Progress goes to stdout as JSON
lines. The state is saved to ``--work`` as it goes, and an interrupted run resumes from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo.conversations import TURN_NAMES
from vtr_vllm.demo.model import build_model
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.world import KINDS, Density
from vtr_vllm.training.demo import crew_trainer
from vtr_vllm.training.demo.crew_trainer import CrewTrainer, told
from vtr_vllm.training.demo.muon import Muon
from vtr_vllm.training.demo.shards import Crew, Job, Stats


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run. Steps are optimizer steps; images count over all shards.

    shards: parts of a batch, one process each; the sums of their gradients depend on it.
    """

    seed: int = 1
    shards: int = 2
    naming_steps: int = 250
    naming_images: int = 32
    naming_warmup: int = 40
    naming_decay: int = 120
    naming_rate: float = 3e-3
    feature_norm: float = 1.8
    images: int = 8
    questions: int = 32
    warmup: int = 10
    most_steps: int = 1000
    decay_steps: int = 350
    decay_accuracy: float = 0.93
    rate: float = 2.5e-3
    other_rate: float = 2e-3
    word_rate: float = 5e-4
    tower_share: float = 0.3
    naming_weight: float = 0.1
    help_weight: float = 0.4
    help_steps: int = 600
    stages: tuple[Density, ...] = (
        Density(objects=(8, 14), marks=(6, 12), noise=9),
        Density(objects=(14, 22), marks=(10, 18), noise=9),
        USUAL,
    )
    stage_accuracy: tuple[float, ...] = (0.6, 0.75)
    talk_steps: int = 600
    talk_decay: int = 300
    talk_help_steps: int = 300
    talk_share: float = 0.4
    """Of the rates of phase 2."""


@dataclass
class Progress(crew_trainer.Progress):
    """Also the phase, from 1, and its stage; ``scene``: the first that was not drawn yet."""

    phase: int = 1
    scene: int = 0
    stage: int = 0
    decay_from: int = -1


class Trainer(CrewTrainer):
    """One training run. ``work`` is the folder of the saved state.

    Raises ConfigurationError where that is of another recipe.
    """

    kind = Progress
    progress: Progress

    def __init__(self, recipe: Recipe, work: Path) -> None:
        super().__init__(work, asdict(recipe))
        self.recipe = recipe
        self.model: Any = build_model(recipe.seed)
        self._make_optimizers()
        self.restore()

    def _make_optimizers(self) -> None:
        """Muon for the matrices, AdamW for all else; the tower learns slower in phase 2."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, weight in self.model.named_parameters():
            decoder = "language_model" in name
            if decoder and self.progress.phase == 1:
                continue
            matrix = weight.ndim == 2 and ("layers" in name or "projector" in name)
            kind = "words" if "embed_tokens" in name else "matrix" if matrix else "other"
            groups.setdefault(f"{kind} {'decoder' if decoder else 'tower'}", []).append(weight)
        recipe, first = self.recipe, self.progress.phase == 1
        rates = {
            "matrix": recipe.naming_rate if first else recipe.rate,
            "other": recipe.other_rate,
            "words": recipe.word_rate,
        }
        self.optimizers, self.rates = [], []
        for name, weights in groups.items():
            kind, part = name.split()
            slow = part == "tower" and not first
            rate = rates[kind] * (recipe.tower_share if slow else 1.0)
            rate *= recipe.talk_share if self.progress.phase == 3 else 1.0
            self.optimizers.append(_optimizer(kind, weights, rate))
            self.rates.append([rate])

    def rate_factor(self) -> float:
        """Warm-up and decay of the phase."""
        recipe, progress = self.recipe, self.progress
        warmup = recipe.naming_warmup if progress.phase == 1 else recipe.warmup
        decays = {1: recipe.naming_decay, 2: recipe.decay_steps, 3: recipe.talk_decay}
        decay = decays[progress.phase]
        factor = min(1.0, (progress.step + 1) / warmup)
        return factor * min(1.0, max(0.02, (self.last_step() - progress.step) / decay))

    def last_step(self) -> int:
        """Return the number of steps of the phase, in phase 2 as far as it is known by now."""
        recipe, start = self.recipe, self.progress.decay_from
        questions = (recipe.most_steps if start < 0 else start) + recipe.decay_steps
        return {1: recipe.naming_steps, 2: questions, 3: recipe.talk_steps}[self.progress.phase]

    @property
    def done(self) -> bool:
        """Whether the last phase has ended."""
        return self.progress.phase == 3 and self.progress.step >= self.last_step()

    def jobs(self) -> list[Job]:
        """Return the next step's share of each process."""
        recipe, progress = self.recipe, self.progress
        images = recipe.naming_images if progress.phase == 1 else recipe.images
        share = images // recipe.shards
        firsts = [progress.scene + i * share for i in range(recipe.shards)]
        if progress.phase == 1:
            return [Job(first, share, USUAL) for first in firsts]
        questions, naming = recipe.questions, recipe.naming_weight
        talk = progress.phase == 3
        density = USUAL if talk else recipe.stages[progress.stage]
        fade = 1 - progress.step / (recipe.talk_help_steps if talk else recipe.help_steps)
        helping = recipe.help_weight * max(0.0, fade)
        return [Job(first, share, density, questions, naming, helping, talk) for first in firsts]

    def step(self, crew: Crew) -> None:
        """Take one optimizer step, and count the scenes that it drew."""
        drawn = sum(job.images for job in self.jobs())
        super().step(crew)
        self.progress.scene += drawn

    @torch.no_grad()
    def begin_questions(self, norm: float) -> None:
        """Enter phase 2 with vision tokens of a norm near that of words, ``norm`` before."""
        factor = self.recipe.feature_norm / norm
        last = self.model.model.multi_modal_projector.linear_2
        last.weight.mul_(factor)
        last.bias.mul_(factor)
        self._begin(2)

    def begin_talk(self, weights: Path | None = None) -> None:
        """Enter phase 3, with the exported weights in the folder ``weights`` where one is given."""
        if weights is not None:
            start = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
            self.model.load_state_dict(start.state_dict())
        self._begin(3)

    def _begin(self, phase: int) -> None:
        self.progress.phase, self.progress.step = phase, 0
        self._make_optimizers()

    def report(self, sums: Stats, steps: int, seconds: float) -> None:
        """Print the means since the last report, act on the accuracy, and begin the next phase."""
        progress, last = self.progress, self.last_step()
        line: dict[str, Any] = {"phase": progress.phase, "step": progress.step}
        line["seconds"] = round(progress.seconds)
        line["seconds_left_of_phase"] = round((last - progress.step) * seconds / steps)
        line |= told(sums, steps, (*KINDS, *TURN_NAMES))
        if progress.phase == 2:
            line["stage"] = progress.stage
            self._move_on(line["all"])
        print(json.dumps(line), flush=True)
        if progress.step == last and progress.phase == 1:
            self.begin_questions(sums["norm"] / steps)
        elif progress.step == last and progress.phase == 2:
            self.begin_talk()

    def _move_on(self, accuracy: float) -> None:
        """Move to a denser stage, or begin the final decay, when accuracy allows."""
        recipe, progress = self.recipe, self.progress
        if progress.stage < len(recipe.stage_accuracy):
            progress.stage += accuracy >= recipe.stage_accuracy[progress.stage]
        elif progress.decay_from < 0 and accuracy >= recipe.decay_accuracy:
            progress.decay_from = progress.step
        if progress.decay_from < 0 and progress.step >= recipe.most_steps:
            progress.decay_from = progress.step
            progress.stage = len(recipe.stages) - 1


def _optimizer(kind: str, weights: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    if kind == "matrix":
        return Muon(weights, rate)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
