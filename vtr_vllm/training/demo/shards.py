"""Gradients of one training step, spread over processes.

Each process has one thread and a share of the images; weights and gradients lie in shared
memory. Two such processes beat two threads in one: they meet once a step and not at every
operation, which on a busy machine is most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import get_context

from vtr_vllm.demo.conversations import TURN_NAMES
from vtr_vllm.demo.model import decoder_pass, vision_features
from vtr_vllm.demo.tokenizer import EOS, IDS, PREFIX
from vtr_vllm.demo.world import KINDS, Density
from vtr_vllm.training.demo.batches import (
    IGNORED,
    Pack,
    alone,
    draw_questions,
    draw_scenes,
    draw_talks,
    embed_pack,
    embed_prefix,
    label_patches,
    pack_mask,
    pack_talks,
)
from vtr_vllm.training.demo.losses import answer_loss, collecting_loss, looking_loss, patch_loss

Stats = dict[str, float]
Loss = Callable[[Any, Any], tuple[Tensor, Stats]]
"""(model, job) -> a loss of it, and what else is reported."""


@dataclass(frozen=True)
class Job:
    """The share of one step: training scenes ``first`` to ``first + images - 1``.

    questions: per image; 0 trains on the labels of the patches alone. talk: they stand in
    conversations. naming_weight and help_weight: shares of the patch loss and of the helping losses
    beside the answers' loss.
    """

    first: int
    images: int
    density: Density
    questions: int = 0
    naming_weight: float = 1.0
    help_weight: float = 0.0
    talk: bool = False


def word_table(model: Any) -> Tensor:
    """Return the word embeddings, ``[128, width]``."""
    table: Tensor = model.model.language_model.embed_tokens.weight
    return table


def job_loss(model: Any, job: Job) -> tuple[Tensor, Stats]:
    """Return the loss of a training job of any phase, and losses and counts for the log."""
    return question_loss(model, job) if job.questions else naming_loss(model, job)


def add_gradients(loss_of: Loss, model: Any, job: Any) -> Stats:
    """Add the gradients of ``job`` to those of ``model``; return losses and counts."""
    loss, stats = loss_of(model, job)
    loss.backward()
    return {"loss": loss.item(), **stats}


def naming_loss(model: Any, job: Job) -> tuple[Tensor, Stats]:
    """Phase 1: the labels of the patches, against word embeddings that stay as they are."""
    scenes, _ = draw_scenes(job.first, job.images, job.density)
    patches = label_patches(scenes)
    features = vision_features(model, patches.pixels)
    loss, stats = patch_loss(features, patches, word_table(model).detach())
    return loss, {**stats, "norm": features.detach().norm(dim=-1).mean().item()}


def question_loss(model: Any, job: Job) -> tuple[Tensor, Stats]:
    """Phases 2 and 3: answers to packed questions, with the patch loss kept as a small part."""
    scenes, rngs = draw_scenes(job.first, job.images, job.density)
    patches = label_patches(scenes)
    if job.talk:
        talks = draw_talks(rngs, scenes, job.questions)
    else:
        pairs = zip(rngs, scenes, strict=True)
        talks = alone([draw_questions(rng, scene, job.questions) for rng, scene in pairs])
    pack, words = pack_talks(talks), word_table(model)
    features = vision_features(model, patches.pixels)
    text = embed_pack(words, features, pack.ids)
    x = torch.cat([embed_prefix(words, features), text], 1)
    start = torch.arange(len(PREFIX)).expand(len(scenes), -1)
    positions = torch.cat([start, pack.positions], 1)
    readers = pack.readers + len(PREFIX) if job.help_weight else None
    hidden, trace = decoder_pass(model, x, positions, pack_mask(pack.owner), readers)
    asked = pack.labels != IGNORED
    labels = pack.labels[asked]
    logits = model.lm_head(hidden[:, len(PREFIX) :][asked])
    naming, stats = patch_loss(features, patches, words)
    loss = answer_loss(logits, labels) + job.naming_weight * naming
    if job.help_weight:
        looking, collecting = looking_loss(trace, pack), collecting_loss(trace, pack, words)
        loss = loss + job.help_weight * (looking + collecting)
        stats |= {"looking": looking.item(), "collecting": collecting.item()}
    return loss, stats | answered(pack, logits)


def answered(pack: Pack, logits: Tensor) -> Stats:
    """Return how many answers are right and asked for, per kind and turn; ``logits`` of the labelled
    tokens ``[labelled, vocabulary]``."""
    asked = pack.labels != IGNORED
    labels, stats = pack.labels[asked], {}
    right = logits.argmax(-1) == labels
    answers = labels != IDS[EOS]
    groups = {kind: pack.kinds[asked] == index for index, kind in enumerate(KINDS)}
    groups |= {name: pack.turns[asked] == turn for turn, name in enumerate(TURN_NAMES)}
    for name, group in groups.items():
        stats[f"right {name}"] = float(right[group & answers].sum())
        stats[f"asked {name}"] = float((group & answers).sum())
    return stats


def _serve(pipe: Connection, loss_of: Loss, model: Any, gradients: dict[str, Tensor]) -> None:
    """Work on jobs until the other end sends None or goes away."""
    torch.set_num_threads(1)
    for name, weight in model.named_parameters():
        weight.grad = gradients[name]
    try:
        while (job := pipe.recv()) is not None:
            for gradient in gradients.values():
                gradient.zero_()
            pipe.send(add_gradients(loss_of, model, job))
    except (EOFError, KeyboardInterrupt):
        return


class Crew:
    """This process and ``size - 1`` others, which compute gradients for the same ``model``.

    ``model`` moves to shared memory; ``loss_of`` is a function of a module. Use as a context manager,
    which ends the processes.
    """

    def __init__(self, model: Any, size: int, loss_of: Loss = job_loss) -> None:
        self.model, self.loss_of = model, loss_of
        self.members: list[tuple[Connection, dict[str, Tensor]]] = []
        model.share_memory()
        context = get_context("spawn")
        for _ in range(size - 1):
            gradients = {n: torch.zeros_like(w) for n, w in model.named_parameters()}
            for gradient in gradients.values():
                gradient.share_memory_()
            near, far = context.Pipe()
            context.Process(
                target=_serve, args=(far, loss_of, model, gradients), daemon=True
            ).start()
            self.members.append((near, gradients))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, _gradients in self.members:
            pipe.send(None)

    def step(self, jobs: Sequence[Any]) -> Stats:
        """Set the mean gradient of ``jobs``, one for each process, and return mean stats.

        Raises ValueError when the number of jobs is not that of the processes.
        """
        if len(jobs) != len(self.members) + 1:
            raise ValueError(f"{len(jobs)} jobs for {len(self.members) + 1} processes")
        for (pipe, _), job in zip(self.members, jobs[1:], strict=True):
            pipe.send(job)
        total = add_gradients(self.loss_of, self.model, jobs[0])
        weights = dict(self.model.named_parameters())
        for pipe, gradients in self.members:
            stats = pipe.recv()
            total = {name: value + stats[name] for name, value in total.items()}
            for name, weight in weights.items():
                if weight.grad is not None:
                    weight.grad.add_(gradients[name])
        for weight in weights.values():
            if weight.grad is not None:
                weight.grad.div_(len(jobs))
        return {name: value / len(jobs) for name, value in total.items()}
