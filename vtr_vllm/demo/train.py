"""Train the demo model from scratch: ``python -m vtr_vllm.demo.train``.

Phase 1 teaches tower and projector to name what each patch shows. Phase 2 trains everything
on questions, at first in thinner scenes, with helping losses that fade to nothing. Phase 3 puts the
questions into conversations, with the same losses again; ``--talk`` begins there, with the weights of an earlier run. One seed,
no steering: the stages switch on measured training accuracy. Progress goes to stdout as JSON
lines. The state is saved to ``--work`` as it goes, and an interrupted run resumes from there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.conversations import TURN_NAMES
from vtr_vllm.demo.model import build_model, count_parameters
from vtr_vllm.demo.muon import Muon
from vtr_vllm.demo.shards import Crew, Job, Stats
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.world import KINDS, Density

LOG_EVERY = 25
SAVE_EVERY = 25


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
class Progress:
    """Where a run stands; saved with the weights."""

    phase: int = 1
    step: int = 0
    scene: int = 0
    stage: int = 0
    decay_from: int = -1
    seconds: float = 0.0
    sums: Stats = field(default_factory=dict)


class Trainer:
    """One training run. ``work`` is the folder of the saved state."""

    def __init__(self, recipe: Recipe, work: Path) -> None:
        self.recipe = recipe
        self.state_file = work / "state.pt"
        self.model: Any = build_model(recipe.seed)
        self.progress = Progress()
        self.optimizers: list[torch.optim.Optimizer] = []
        self.base_rates: list[float] = []
        work.mkdir(parents=True, exist_ok=True)
        state = None
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=True)
            if state["recipe"] != json.dumps(asdict(recipe)):
                raise ValueError(f"{self.state_file} is from another recipe; remove it")
            self.progress = Progress(**state["progress"])
            self.model.load_state_dict(state["model"])
        self._make_optimizers()
        if state is not None:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

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
        self.optimizers, self.base_rates = [], []
        for name, weights in groups.items():
            kind, part = name.split()
            slow = part == "tower" and not first
            rate = rates[kind] * (recipe.tower_share if slow else 1.0)
            rate *= recipe.talk_share if self.progress.phase == 3 else 1.0
            self.optimizers.append(_optimizer(kind, weights, rate))
            self.base_rates.append(rate)

    def _set_rates(self) -> None:
        recipe, progress = self.recipe, self.progress
        total = self.last_step()
        warmup = recipe.naming_warmup if progress.phase == 1 else recipe.warmup
        decays = {1: recipe.naming_decay, 2: recipe.decay_steps, 3: recipe.talk_decay}
        decay = decays[progress.phase]
        factor = min(1.0, (progress.step + 1) / warmup)
        factor *= min(1.0, max(0.02, (total - progress.step) / decay))
        for optimizer, rate in zip(self.optimizers, self.base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

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
        """Take one optimizer step. Raises FloatingPointError when the loss is not a number."""
        self._set_rates()
        jobs = self.jobs()
        stats = crew.step(jobs)
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
        self.progress.scene += sum(job.images for job in jobs)

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

    def _report(self, steps: int, seconds: float) -> None:
        """Print the means since the last report and act on the accuracy."""
        progress = self.progress
        progress.seconds += seconds
        line: dict[str, Any] = {"phase": progress.phase, "step": progress.step}
        line["seconds"] = round(progress.seconds)
        line["seconds_left_of_phase"] = round((self.last_step() - progress.step) * seconds / steps)
        sums, progress.sums = progress.sums, {}
        counts = {
            name: (sums.pop(f"right {name}", 0.0), sums.pop(f"asked {name}", 0.0))
            for name in (*KINDS, *TURN_NAMES)
        }
        line |= {name: round(value / steps, 4) for name, value in sums.items()}
        if progress.phase > 1:
            line["accuracy"] = {k: round(r / n, 3) for k, (r, n) in counts.items() if n}
            rights, askeds = zip(*(counts[kind] for kind in KINDS), strict=True)
            line["all"] = round(sum(rights) / sum(askeds), 4)
        if progress.phase == 2:
            line["stage"] = progress.stage
            self._move_on(line["all"])
        print(json.dumps(line), flush=True)

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

    def save(self) -> None:
        """Save the state, in one move so that a kill leaves the old or the new one."""
        state = {
            "recipe": json.dumps(asdict(self.recipe)),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        fresh = self.state_file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.state_file)

    def run(self, crew: Crew) -> None:
        """Train to the end."""
        progress = self.progress
        began, steps = time.monotonic(), 0
        while not self.done:
            self.step(crew)
            steps += 1
            ended = progress.step == self.last_step()
            norm = progress.sums.get("norm", 0.0) / steps
            if progress.step % LOG_EVERY == 0 or ended:
                self._report(steps, time.monotonic() - began)
                began, steps = time.monotonic(), 0
            if ended and progress.phase == 1:
                self.begin_questions(norm)
            elif ended and progress.phase == 2:
                self.begin_talk()
            if progress.step % SAVE_EVERY == 0:
                self.save()
        self.save()


def _optimizer(kind: str, weights: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    if kind == "matrix":
        return Muon(weights, rate)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))


def main() -> None:
    """Train, export and evaluate."""
    parser = argparse.ArgumentParser(description="Train the demo model from scratch.")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the weights")
    parser.add_argument("--work", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--talk", type=Path, help="folder of weights that phase 3 begins with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(Recipe(), arguments.work)
    if arguments.talk is not None:
        if trainer.progress.phase == 3:
            parser.error(
                f"phase 3 has begun in {trainer.state_file}; leave --talk out to go on, or remove the file"
            )
        trainer.begin_talk(arguments.talk)
    print(json.dumps({"parameters": count_parameters(trainer.model)}), flush=True)
    with Crew(trainer.model, trainer.recipe.shards) as crew:
        trainer.run(crew)

    from vtr_vllm.demo.evaluate import evaluate
    from vtr_vllm.demo.export import export

    export(trainer.model, arguments.out)
    torch.set_num_threads(trainer.recipe.shards)
    print(json.dumps(evaluate(arguments.out), indent=1), flush=True)


if __name__ == "__main__":
    main()
