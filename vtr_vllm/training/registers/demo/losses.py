"""What a step of the training with registers learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vtr_vllm.demo.model import Trace, patch_logits, vision_features
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.tokenizer import FIRST_VISION
from vtr_vllm.training.demo.batches import (
    COLOR_NAMES,
    IGNORED,
    PATCH_WORDS,
    Pack,
    Patches,
    alone,
    draw_questions,
    draw_scenes,
    embed_pack,
    label_patches,
    pack_mask,
    pack_talks,
    word_ids,
)
from vtr_vllm.training.demo.losses import answer_loss, collecting_loss
from vtr_vllm.training.demo.shards import Stats, answered
from vtr_vllm.training.registers.demo.model import (
    CELL_COUNT,
    CELL_OF_PATCH,
    END,
    RegisterModel,
    dropping_pass,
    registers_of_cells,
    slots_of_cells,
)

EMPTY_WEIGHT = 0.3
_WORD_IDS, _COLOR_IDS = word_ids(PATCH_WORDS[:-1]), word_ids(COLOR_NAMES)


@dataclass(frozen=True)
class Job:
    """The share of one step: training scenes ``first`` to ``first + images - 1``.

    kept: registers that stay; layer: before which all else of an image goes; help_weight: of the helping
    losses beside the answers'.
    """

    first: int
    images: int
    questions: int
    kept: int
    layer: int
    help_weight: float


def job_loss(model: RegisterModel, job: Job) -> tuple[Tensor, Stats]:
    """Answers to packed questions; helping losses while they last."""
    scenes, rngs = draw_scenes(job.first, job.images, USUAL)
    patches = label_patches(scenes)
    pairs = zip(rngs, scenes, strict=True)
    pack = pack_talks(alone([draw_questions(rng, scene, job.questions) for rng, scene in pairs]))
    with torch.no_grad():
        features = vision_features(model.llava, patches.pixels)
    passed = dropping_pass(
        model,
        features,
        embed_pack(model.words, features, pack.ids),
        pack.positions,
        pack_mask(pack.owner),
        job.kept,
        job.layer,
        pack.readers if job.help_weight else None,
    )
    asked = pack.labels != IGNORED
    logits = model.llava.lm_head(passed.hidden[asked])
    loss = answer_loss(logits, pack.labels[asked])
    stats = answered(pack, logits)
    if job.help_weight:
        naming, named = naming_loss(model, passed.written, patches, job.kept)
        looking = looking_loss(passed.trace, pack, job.kept, job.layer)
        collecting = collecting_loss(passed.trace, pack, model.words)
        loss = loss + job.help_weight * (naming + looking + collecting)
        stats |= {"looking": looking.item(), "collecting": collecting.item(), **named}
    return loss, stats


def cells(patches: Patches) -> tuple[Tensor, Tensor]:
    """Glyph of each cell, ``[b, 36]``, as an index of ``PATCH_WORDS``, 0 for none; and its colour."""
    glyphs = torch.where(patches.words == len(PATCH_WORDS) - 1, 0, patches.words)
    where = CELL_OF_PATCH.expand_as(glyphs)
    words = glyphs.new_zeros(len(glyphs), CELL_COUNT).scatter_reduce_(1, where, glyphs, "amax")
    own = torch.where(glyphs > 0, patches.colors, IGNORED)
    colors = own.new_full((len(own), CELL_COUNT), IGNORED)
    return words, colors.scatter_reduce_(1, where, own, "amax")


def naming_loss(
    model: RegisterModel, written: Tensor, patches: Patches, kept: int
) -> tuple[Tensor, Stats]:
    """Each register names glyph and colour of each of its cells, from its state at the cut."""
    words, colors = cells(patches)
    turns = model.slots[str(kept)][slots_of_cells(kept)]
    states = written[:, registers_of_cells(kept)]
    states = torch.einsum("bcw,cwv->bcv", states, turns)
    named = patch_logits(states, _WORD_IDS, model.words)
    full = words > 0
    weight = torch.where(full, 1.0, EMPTY_WEIGHT)
    each = functional.cross_entropy(named.transpose(1, 2), words, reduction="none")
    colored = patch_logits(states[full], _COLOR_IDS, model.words)
    loss = (each * weight).sum() / weight.sum()
    loss = loss + functional.cross_entropy(colored, colors[full])
    right = named.argmax(-1) == words
    return loss, {
        "naming": loss.item(),
        "cell_word": right[full].float().mean().item(),
        "cell_color": (colored.argmax(-1) == colors[full]).float().mean().item(),
    }


def looking_loss(trace: Trace, pack: Pack, kept: int, layer: int) -> Tensor:
    """Return -log of the chance that some head of some layer looks at the target or its register.

    As ``vtr_vllm.training.demo.losses.looking_loss``, where the register of a target's cell stands for it.
    """
    owner = functional.one_hot(registers_of_cells(kept)[CELL_OF_PATCH], kept).float()
    total = torch.zeros(())
    for hop in pack.hops:
        asked = hop.any(-1)
        if not asked.any():
            continue
        target = hop[:, None].float()
        register = (target @ owner).clamp(max=1)
        masses = []
        for index, attention in enumerate(trace.attention):
            first = END if index < layer else FIRST_VISION
            mass = (attention[..., first : first + kept] * register).sum(-1)
            if index < layer:
                mass = mass + (attention[..., FIRST_VISION:END] * target).sum(-1)
            masses.append(mass)
        mass = torch.cat(masses, 1).transpose(0, 1)[:, asked]
        missed = torch.log1p(-mass.clamp(max=0.999)).sum(0)
        total = total - torch.log(-torch.expm1(missed) + 1e-6).mean()
    return total
