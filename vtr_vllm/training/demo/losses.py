"""Training losses. None of them names a layer: where the model reads is its own affair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vtr_vllm.demo.model import Trace, patch_logits
from vtr_vllm.demo.tokenizer import FIRST_VISION
from vtr_vllm.demo.world import VISION_TOKENS
from vtr_vllm.training.demo.batches import (
    COLOR_NAMES,
    COLUMNS,
    GROUP_IDS,
    IGNORED,
    PATCH_COLUMNS,
    PATCH_ROWS,
    PATCH_WORDS,
    ROWS,
    Pack,
    Patches,
    word_ids,
)

EMPTY_WEIGHT = 0.08  # most patches are empty
PLACE_WEIGHT = 1.0
EMPTY_PLACE_WEIGHT = 0.15
CHOICE_TEMPERATURE = 0.5

_PATCH_IDS, _COLOR_IDS = word_ids(PATCH_WORDS), word_ids(COLOR_NAMES)
_ROW_IDS, _COLUMN_IDS = word_ids(ROWS), word_ids(COLUMNS)


def patch_loss(
    features: Tensor, patches: Patches, embeddings: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss that makes each vision token name its glyph, colour, row and column.

    features: ``[b, 144, width]``; embeddings: the word table. The second value holds the
    accuracies on patches that are not empty, for the log.
    """
    full = patches.words > 0
    words = patch_logits(features, _PATCH_IDS, embeddings)
    weight = torch.where(full, 1.0, EMPTY_WEIGHT)
    word_loss = functional.cross_entropy(words.transpose(1, 2), patches.words, reduction="none")
    colors = patch_logits(features[full], _COLOR_IDS, embeddings)
    color_loss = functional.cross_entropy(colors, patches.colors[full])
    place_weight = torch.where(full, 1.0, EMPTY_PLACE_WEIGHT)
    place_loss = torch.zeros(())
    for ids, place in ((_ROW_IDS, PATCH_ROWS), (_COLUMN_IDS, PATCH_COLUMNS)):
        logits = patch_logits(features, ids, embeddings).transpose(1, 2)
        labels = place.expand(len(features), -1)
        each = functional.cross_entropy(logits, labels, reduction="none")
        place_loss = place_loss + (each * place_weight).sum() / place_weight.sum()
    total = (word_loss * weight).sum() / weight.sum() + color_loss + PLACE_WEIGHT * place_loss
    right = words.argmax(-1) == patches.words
    accuracy = {
        "patch_word": right[full].float().mean().item(),
        "patch_empty": right[~full].float().mean().item(),
        "patch_color": (colors.argmax(-1) == patches.colors[full]).float().mean().item(),
    }
    return total, accuracy


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the answer and end tokens."""
    return functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED)


def looking_loss(trace: Trace, pack: Pack) -> Tensor:
    """Return -log of the chance that some head of some layer looks at the target.

    With ``m`` the mass that a head's last-token attention puts on the target patches, the
    chance is ``1 - prod(1 - m)`` over all layers and heads. One head suffices, in whatever
    layer the model likes best. Each hop of a question counts as a target of its own.
    """
    vision = slice(FIRST_VISION, FIRST_VISION + VISION_TOKENS)
    seen = torch.cat([a[..., vision] for a in trace.attention], 1)
    total = torch.zeros(())
    for hop in pack.hops:
        asked = hop.any(-1)
        if not asked.any():
            continue
        mass = (seen * hop[:, None]).sum(-1).transpose(0, 1)[:, asked]
        missed = torch.log1p(-mass.clamp(max=0.999)).sum(0)
        total = total - torch.log(-torch.expm1(missed) + 1e-6).mean()
    return total


def collecting_loss(trace: Trace, pack: Pack, embeddings: Tensor) -> Tensor:
    """Return how badly the last token holds the words that the answer follows from.

    Per word and layer: the cross entropy of the word among its group (rows, columns,
    glyphs ..). Each word's layers are then weighted by how well they already do, so that the
    model settles for itself where a word is gathered.
    """
    total = torch.zeros(())
    image, number, group, word = pack.facts.unbind(1)
    for index, ids in enumerate(GROUP_IDS):
        mine = group == index
        if not mine.any():
            continue
        states = torch.stack([x[image[mine], number[mine]] for x in trace.inputs])
        logs = patch_logits(states, ids, embeddings.detach()).log_softmax(-1)
        chosen = word[mine].expand(len(states), -1)[..., None]
        losses = -logs.gather(-1, chosen).squeeze(-1)
        share = (-losses.detach() / CHOICE_TEMPERATURE).softmax(0)
        total = total + (share * losses).sum(0).mean()
    return total
