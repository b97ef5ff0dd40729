"""Train the demo model from scratch: ``python -m vtr_vllm.demo.train``.

Phase 1 teaches tower and projector to name what each patch shows. Phase 2 trains everything
on questions, at first in thinner scenes, with helping losses that fade to nothing. One seed,
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
from torch import Tensor, nn

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.batches import (
    IGNORED,
    draw_questions,
    draw_scenes,
    embed_prefix,
    label_patches,
    pack_mask,
    pack_questions,
)
from vtr_vllm.demo.losses import answer_loss, collecting_loss, looking_loss, patch_loss
from vtr_vllm.demo.model import build_model, count_parameters, decoder_pass, vision_features
from vtr_vllm.demo.muon import Muon
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.tokenizer import EOS, IDS, PREFIX
from vtr_vllm.demo.world import KINDS, Density

LOG_EVERY = 25
SAVE_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run. Steps are optimizer steps."""

    seed: int = 1
    naming_steps: int = 350
    naming_images: int = 32
    naming_warmup: int = 40
    naming_decay: int = 150
    naming_rate: float = 3e-3
    feature_norm: float = 1.8
    images: int = 16
    questions: int = 24
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


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    phase: int = 1
    step: int = 0
    scene: int = 0
    stage: int = 0
    decay_from: int = -1
    right: list[int] = field(default_factory=lambda: [0] * len(KINDS))
    asked: list[int] = field(default_factory=lambda: [0] * len(KINDS))
    seconds: float = 0.0


class Trainer:
    """One training run. ``work`` is the folder of the saved state."""

    def __init__(self, recipe: Recipe, work: Path) -> None:
        self.recipe = recipe
        self.state_file = work / "state.pt"
        self.model: Any = build_model(recipe.seed)
        self.progress = Progress()
        self.optimizers: list[torch.optim.Optimizer] = []
        self.base_rates: list[float] = []
        self.sums: dict[str, float] = {}
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

    @property
    def words(self) -> Tensor:
        """The word table, ``[128, width]``."""
        table: Tensor = self.model.model.language_model.embed_tokens.weight
        return table

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
            self.optimizers.append(_optimizer(kind, weights, rate))
            self.base_rates.append(rate)

    def _set_rates(self) -> None:
        recipe, progress = self.recipe, self.progress
        if progress.phase == 1:
            warmup, total, decay = recipe.naming_warmup, recipe.naming_steps, recipe.naming_decay
        else:
            warmup, total, decay = recipe.warmup, self.last_step(), recipe.decay_steps
        factor = min(1.0, (progress.step + 1) / warmup)
        factor *= min(1.0, max(0.02, (total - progress.step) / decay))
        for optimizer, rate in zip(self.optimizers, self.base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def last_step(self) -> int:
        """Return the number of phase 2 steps, as far as it is known by now."""
        start = self.progress.decay_from
        return (self.recipe.most_steps if start < 0 else start) + self.recipe.decay_steps

    def _finish_step(self, loss: Tensor) -> None:
        loss.backward()
        weights = [w for o in self.optimizers for g in o.param_groups for w in g["params"]]
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._note(loss=loss.item(), gradient=norm.item())
        self.progress.step += 1

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def naming_step(self) -> None:
        """Phase 1: train tower and projector on the labels of the patches."""
        scenes, _ = draw_scenes(self.progress.scene, self.recipe.naming_images, USUAL)
        self.progress.scene += len(scenes)
        patches = label_patches(scenes)
        features = vision_features(self.model, patches.pixels)
        loss, accuracy = patch_loss(features, patches, self.words.detach())
        self._note(**accuracy)
        self._finish_step(loss)
        if self.progress.step == self.recipe.naming_steps:
            self._scale_features(features)

    @torch.no_grad()
    def _scale_features(self, features: Tensor) -> None:
        """Bring vision tokens to a norm near that of words, where the decoder starts well."""
        factor = self.recipe.feature_norm / features.float().norm(dim=-1).mean()
        last = self.model.model.multi_modal_projector.linear_2
        last.weight.mul_(factor)
        last.bias.mul_(factor)

    def question_step(self) -> None:
        """Phase 2: train all weights on packed questions."""
        recipe, progress = self.recipe, self.progress
        scenes, rngs = draw_scenes(progress.scene, recipe.images, recipe.stages[progress.stage])
        progress.scene += len(scenes)
        patches = label_patches(scenes)
        pack = pack_questions(
            [draw_questions(r, s, recipe.questions) for r, s in zip(rngs, scenes, strict=True)]
        )
        help_weight = recipe.help_weight * max(0.0, 1 - progress.step / recipe.help_steps)
        features = vision_features(self.model, patches.pixels)
        x = torch.cat([embed_prefix(self.words, features), self._embed(pack.ids)], 1)
        start = torch.arange(len(PREFIX)).expand(len(scenes), -1)
        positions = torch.cat([start, pack.positions], 1)
        readers = pack.readers + len(PREFIX) if help_weight else None
        hidden, trace = decoder_pass(self.model, x, positions, pack_mask(pack.owner), readers)
        asked = pack.labels != IGNORED
        logits = self.model.lm_head(hidden[:, len(PREFIX) :][asked])
        naming, accuracy = patch_loss(features, patches, self.words)
        loss = answer_loss(logits, pack.labels[asked]) + recipe.naming_weight * naming
        if help_weight:
            looking = looking_loss(trace, pack)
            collecting = collecting_loss(trace, pack, self.words)
            self._note(looking=looking.item(), collecting=collecting.item())
            loss = loss + help_weight * (looking + collecting)
        self._note(**accuracy)
        self._count(logits, pack.labels[asked], pack.kinds[asked])
        self._finish_step(loss)

    def _embed(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.words)

    def _count(self, logits: Tensor, labels: Tensor, kinds: Tensor) -> None:
        right = logits.argmax(-1) == labels
        for index in range(len(KINDS)):
            mine = (kinds == index) & (labels != IDS[EOS])
            self.progress.right[index] += int(right[mine].sum())
            self.progress.asked[index] += int(mine.sum())

    def _report(self, steps: int, seconds: float) -> None:
        progress, recipe = self.progress, self.recipe
        left = recipe.most_steps + recipe.decay_steps
        if progress.phase == 1:
            left += (recipe.naming_steps - progress.step) // 3
        else:
            left = self.last_step() - progress.step
        line: dict[str, Any] = {"phase": progress.phase, "step": progress.step}
        line["seconds"] = round(progress.seconds)
        line["seconds_left"] = round(left * seconds / steps)
        line |= {name: round(value / steps, 4) for name, value in self.sums.items()}
        if progress.phase == 2:
            scores = zip(KINDS, progress.right, progress.asked, strict=True)
            line["accuracy"] = {k: round(r / max(1, n), 3) for k, r, n in scores}
            line["all"] = round(sum(progress.right) / sum(progress.asked), 4)
            line["stage"] = progress.stage
            self._move_on(line["all"])
        print(json.dumps(line), flush=True)
        self.sums = {}
        progress.right, progress.asked = [0] * len(KINDS), [0] * len(KINDS)

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

    def run(self) -> None:
        """Train to the end. Raises FloatingPointError when the loss is no longer a number."""
        recipe, progress = self.recipe, self.progress
        began, steps = time.monotonic(), 0
        while progress.phase == 1 or progress.step < self.last_step():
            self._set_rates()
            self.naming_step() if progress.phase == 1 else self.question_step()
            steps += 1
            if self.sums["loss"] != self.sums["loss"]:
                raise FloatingPointError(f"the loss is not a number at step {progress.step}")
            ended = progress.phase == 1 and progress.step == recipe.naming_steps
            if progress.step % LOG_EVERY == 0 or ended:
                seconds = time.monotonic() - began
                progress.seconds += seconds
                self._report(steps, seconds)
                began, steps = time.monotonic(), 0
            if ended:
                progress.phase, progress.step = 2, 0
                self._make_optimizers()
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
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(Recipe(), arguments.work)
    print(json.dumps({"parameters": count_parameters(trainer.model)}), flush=True)
    trainer.run()

    from vtr_vllm.demo.evaluate import evaluate
    from vtr_vllm.demo.export import export

    export(trainer.model, arguments.out)
    print(json.dumps(evaluate(arguments.out), indent=1), flush=True)


if __name__ == "__main__":
    main()
