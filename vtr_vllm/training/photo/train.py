"""Train the photo model: ``python -m vtr_vllm.training.photo``.

Phase 1 teaches the projector alone to say what stands where in a scene, in the language half's own word
embeddings; the decoder does not run. Phase 2 trains projector and LoRA on questions, a picture's questions in
one sequence. Stopped, the same command goes on.
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
    naming_pictures: int = 64
    naming_rate: float = 1e-3
    naming_heat: float = 12.0
    """By which cosines are multiplied before the softmax over all names."""
    steps: int = 600
    pictures: int = 4
    """Of a step of phase 2."""
    warm_up: int = 20
    projector_rate: float = 5e-4
    lora_rate: float = 5e-4
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
        recipe, saved, began, sums = self.recipe, time.monotonic(), time.monotonic(), []
        while not stopped():
            last = recipe.naming_steps if self.phase == 1 else recipe.steps
            if self.step == last:
                if self.phase == 2:
                    self.save()
                    return True
                self.phase, self.step = 2, 0
                self.optimizer = self._optimizer()
                self.save()
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
        for index, sequence in zip(chosen, packed, strict=True):
            logits = self.logits(self.rows(self.features[index], sequence))
            loss = functional.cross_entropy(logits, sequence.answers, reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        return total

    def _name(self) -> float:
        """Gradients of a step of phase 1: each object's patches against all names."""
        known, words = self._names
        groups, named = [], []
        for index in self._order():
            states = self.features[index]
            for thing in self.pictures[index].things:
                groups.append(states[thing.patches()])
                named.append(known[thing.name])
        sizes = [len(group) for group in groups]
        seen = self.projector(torch.cat(groups))
        mean = torch.stack([part.mean(0) for part in seen.split(sizes)])
        alike = functional.normalize(mean, dim=-1) @ functional.normalize(words, dim=-1).T
        loss = functional.cross_entropy(alike * self.recipe.naming_heat, torch.tensor(named))
        size = words.norm(dim=-1).mean()
        loss = loss + 0.1 * (seen.norm(dim=-1) / size - 1).square().mean()
        loss.backward()
        return loss.item()

    @cached_property
    def _names(self) -> tuple[dict[str, int], Tensor]:
        """Number of each object's name, and the mean embedding of its words ``[names, hidden]``."""
        found = sorted({thing.name for picture in self.pictures for thing in picture.things})
        tokenizer = self.processor.tokenizer
        ids = [tokenizer(" " + name, add_special_tokens=False).input_ids for name in found]
        table = self.decoder.embed_tokens.weight.detach()
        words = torch.stack([table[i].mean(0) for i in ids])
        return {name: i for i, name in enumerate(found)}, words

    def _order(self) -> list[int]:
        """Pictures of this step: a function of seed, phase and step alone."""
        usable = [i for i, p in enumerate(self.pictures) if self.phase == 2 or p.things]
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
