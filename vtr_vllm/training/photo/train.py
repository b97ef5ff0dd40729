"""Train the photo model: ``python -m vtr_vllm.training.photo``.

Phase 1 teaches the projector alone to name what a scene shows (``naming``). Phase 2 trains projector and LoRA on
questions, a picture's questions in one sequence. Stopped, the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vtr_vllm.training import lora
from vtr_vllm.training.photo.naming import Naming
from vtr_vllm.training.photo.packing import Packed, pack
from vtr_vllm.training.photo.pictures import Features, Picture, digest
from vtr_vllm.training.state import load_state, save_state

__all__ = ["Recipe", "Trainer"]

SAVE_SECONDS = 120.0
_REPORT = 10  # steps


@dataclass(frozen=True)
class Recipe:
    """All that shapes a training."""

    seed: int = 0
    rank: int = 16
    naming_steps: int = 1500
    naming_pictures: int = 16
    naming_rate: float = 1e-3
    steps: int = 1000
    pictures: int = 2
    """Of a step of phase 2."""
    scene_steps: int = 400
    """Of phase 2, the first: scenes alone."""
    thinned_steps: int = 750
    """Of phase 2, the first: a random half of a picture's vision tokens, to see more pictures."""
    warm_up: int = 20
    projector_rate: float = 1e-4
    lora_rate: float = 4e-4
    last_rate: float = 0.1
    """Of both, at the last step."""


class Trainer:
    """One training; ``folder`` holds its state."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        pictures: Sequence[Picture],
        features: Features,
        recipe: Recipe,
        folder: Path,
    ) -> None:
        """Raises ConfigurationError where the folder's state is of another recipe or other questions."""
        self.processor, self.pictures, self.features = processor, pictures, features
        self.recipe, self.folder, self.model = recipe, folder, model
        self.decoder = model.model.language_model
        self.projector = model.model.multi_modal_projector
        model.requires_grad_(False)
        torch.manual_seed(recipe.seed)
        lora.add(self.decoder, recipe.rank)
        self.projector.requires_grad_(True)
        self._asked = asdict(recipe) | {"data": digest(pictures)}
        state = load_state(folder, self._asked)
        self.phase: int = 1 if state is None else state["phase"]
        self.step: int = 0 if state is None else state["step"]
        if state is not None:
            self.load(state["weights"])
        self.optimizer = self._optimizer()
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> dict[str, Tensor]:
        """All that is trained: the delta."""
        projector = {f"projector.{k}": v.detach() for k, v in self.projector.state_dict().items()}
        return projector | {f"lora.{k}": v for k, v in lora.tensors(self.decoder).items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """The reverse."""
        own = {"projector": self.projector, "lora": self.decoder}
        for name, module in own.items():
            part = {
                key.removeprefix(f"{name}."): value
                for key, value in weights.items()
                if key.startswith(f"{name}.")
            }
            module.load_state_dict(part, strict=False)

    def save(self) -> None:
        """Write what the training goes on from, in one move; OSError passes through."""
        save_state(
            self.folder,
            {
                "asked": self._asked,
                "phase": self.phase,
                "step": self.step,
                "weights": self.weights(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def run(self, stopped: Callable[[], bool], say: Callable[[str], None]) -> bool:
        """Train to the end, or until ``stopped``; returns whether it is the end."""
        recipe, saved, began = self.recipe, time.monotonic(), time.monotonic()
        sums: list[float] = []
        while not stopped():
            last = recipe.naming_steps if self.phase == 1 else recipe.steps
            if self.step == last:
                if self.phase == 2:
                    self.save()
                    return True
                self.phase, self.step = 2, 0
                self.optimizer = self._optimizer()
                self.save()
                began, sums = time.monotonic(), []
                continue
            self._set_rates(last)
            loss = self._name() if self.phase == 1 else self._ask()
            torch.nn.utils.clip_grad_norm_(self._trained(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            sums.append(loss)
            if len(sums) == _REPORT * (10 if self.phase == 1 else 1):
                each = (time.monotonic() - began) / len(sums)
                say(
                    f"phase {self.phase} step {self.step}/{last} loss {sum(sums) / len(sums):.4f} {each:.2f} s a step"
                )
                began, sums = time.monotonic(), []
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()
        return False

    def rows(self, states: Tensor, packed: Packed) -> Tensor:
        """The decoder's last states where an answer is predicted, ``[T, hidden]``.

        ``states``: the tower's of the picture, ``[N, width]``.
        """
        embeddings = self.decoder.embed_tokens(packed.ids)
        embeddings = embeddings.index_copy(0, packed.vision, self.projector(states))
        decoded = self.decoder(
            inputs_embeds=embeddings[None],
            attention_mask=packed.mask(),
            position_ids=packed.positions[None],
            use_cache=False,
        ).last_hidden_state[0]
        return decoded[packed.predicting]

    def logits(self, rows: Tensor) -> Tensor:
        """``[T, vocabulary]``"""
        return rows @ self.decoder.embed_tokens.weight.T

    def _ask(self) -> float:
        """Gradients of a step of phase 2; the mean loss of an answer token."""
        chosen = self._order()
        packed = [pack(self.processor, self.pictures[i]) for i in chosen]
        tokens, total = sum(len(p.answers) for p in packed), 0.0
        dice = np.random.default_rng([self.recipe.seed, self.step])
        for index, sequence in zip(chosen, packed, strict=True):
            states = self.features[index]
            if self.step < self.recipe.thinned_steps:
                drawn = dice.choice(len(states), len(states) // 2, replace=False)
                kept = torch.from_numpy(np.sort(drawn))
                states, sequence = states[kept], sequence.thinned(kept)
            logits = self.logits(self.rows(states, sequence))
            loss = functional.cross_entropy(logits, sequence.answers, reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        return total

    def _name(self) -> float:
        """Gradients of a step of phase 1."""
        chosen = self._order()
        states = [self.features[i] for i in chosen]
        loss = self._naming.loss(self.projector, states, [self.pictures[i].things for i in chosen])
        loss.backward()
        return loss.item()

    @cached_property
    def _naming(self) -> Naming:
        table = self.decoder.embed_tokens.weight.detach()
        return Naming(self.processor.tokenizer, table, self.pictures)

    def _order(self) -> list[int]:
        """Pictures of this step: a function of seed, phase and step alone."""
        scenes = self.phase == 1 or self.step < self.recipe.scene_steps
        usable = [i for i, p in enumerate(self.pictures) if p.things or not scenes]
        size = self.recipe.pictures if self.phase == 2 else self.recipe.naming_pictures
        numbers = range(self.step * size, (self.step + 1) * size)
        shuffled = {
            epoch: np.random.default_rng([self.recipe.seed, self.phase, epoch]).permutation(usable)
            for epoch in {k // len(usable) for k in numbers}
        }
        return [int(shuffled[k // len(usable)][k % len(usable)]) for k in numbers]

    def _trained(self) -> list[Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def _optimizer(self) -> torch.optim.Optimizer:
        projector = list(self.projector.parameters())
        first = self.phase == 1
        rate = self.recipe.naming_rate if first else self.recipe.projector_rate
        groups = [{"params": projector, "base": rate}]
        if not first:
            groups.append(
                {"params": list(lora.parameters(self.decoder)), "base": self.recipe.lora_rate}
            )
        return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))

    def _set_rates(self, last: int) -> None:
        warm = min(1.0, (self.step + 1) / self.recipe.warm_up)
        left = 1 - self.step / last
        share = warm * (self.recipe.last_rate + (1 - self.recipe.last_rate) * left)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share
