"""How many questions the demo model answers right with nothing but registers behind a layer.

And what M other tokens would do in their place, without any training: see ``CONTROLS``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtr_vllm.demo.model import decoder_pass
from vtr_vllm.demo.tokenizer import FIRST_VISION, PREFIX, VOCABULARY
from vtr_vllm.demo.world import VISION_TOKENS
from vtr_vllm.training.demo.batches import embed_prefix
from vtr_vllm.training.demo.evaluate import Group, Scores, summarise
from vtr_vllm.training.registers.demo.model import (
    CELL_OF_PATCH,
    END,
    RegisterModel,
    dropping_pass,
    registers_of_cells,
)

Stand = Callable[[Tensor, int], Tensor]
"""(hidden states [b, rows, 128], M) -> [M] rows that stand for the image; may write over them."""


def with_registers(model: RegisterModel, groups: Iterable[Group], kept: int, layer: int) -> Scores:
    """Share of right first words with ``kept`` registers alone from layer ``layer`` on."""

    def hidden(group: Group, text: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        passed = dropping_pass(model, group.features, text, positions, mask, kept, layer)
        return passed.hidden

    return _scores(model.llava, groups, hidden)


def without_drop(model: RegisterModel, groups: Iterable[Group]) -> Scores:
    """The same where nothing is dropped before the last layer."""
    layers = len(model.llava.model.language_model.layers)  # behind the last one nothing is read
    return with_registers(model, groups, len(model.registers), layers)


def _last(_states: Tensor, count: int) -> Tensor:
    return torch.arange(END - count, END)


def _random(_states: Tensor, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return FIRST_VISION + torch.randperm(VISION_TOKENS, generator=draw)[:count].sort().values


def _pooled(states: Tensor, count: int) -> Tensor:
    """The mean of each register's patches, in the place of the first of them."""
    owner = registers_of_cells(count)[CELL_OF_PATCH]
    sums = states.new_zeros(len(states), count, states.shape[-1])
    sums.index_add_(1, owner, states[:, FIRST_VISION:END])
    places = torch.tensor([int((owner == each).nonzero()[0]) for each in range(count)])
    order = places.argsort()
    means = sums / owner.bincount(minlength=count)[:, None]
    states[:, FIRST_VISION + places] = means
    return FIRST_VISION + places[order]


CONTROLS: dict[str, Stand] = {"last": _last, "random": _random, "pooled": _pooled}
"""Tokens of the untouched model that stay in the registers' place."""


def control(llava: Any, groups: Iterable[Group], name: str, kept: int, layer: int) -> Scores:
    """Share of right first words of a demo model with a control's tokens alone from ``layer`` on."""

    def hidden(group: Group, text: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        words = llava.model.language_model.embed_tokens.weight
        x = torch.cat([embed_prefix(words, group.features), text], 1)
        before = torch.arange(len(PREFIX)).expand(len(x), -1)

        def cut(index: int, states: Tensor) -> Tensor | None:
            if index != layer - 1:
                return None
            stand = CONTROLS[name](states, kept)
            rest = torch.arange(END, states.shape[1])
            return torch.cat([torch.arange(FIRST_VISION), stand, rest])

        found, _ = decoder_pass(llava, x, torch.cat([before, positions], 1), mask, cut=cut)
        return found

    return _scores(llava, groups, hidden)


@torch.no_grad()
def _scores(
    llava: Any, groups: Iterable[Group], hidden: Callable[[Group, Tensor, Tensor, Tensor], Tensor]
) -> Scores:
    right: dict[str, list[bool]] = defaultdict(list)
    words = llava.model.language_model.embed_tokens.weight
    for group in groups:
        text = torch.nn.functional.embedding(group.ids, words)
        size = len(PREFIX) + text.shape[1]
        positions = torch.arange(len(PREFIX), size).expand(len(text), -1)
        mask = torch.ones(size, size, dtype=torch.bool).tril().expand(len(text), 1, -1, -1)
        last = hidden(group, text, positions, mask)[:, -1]
        best = llava.lm_head(last).argmax(-1).tolist()
        for item, word in zip(group.samples, best, strict=True):
            right[item.kind].append(word < len(VOCABULARY) and VOCABULARY[word] == item.answer)
    return summarise(right)
