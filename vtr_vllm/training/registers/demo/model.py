"""The demo model with registers behind an image's vision tokens, and a pass in which these are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtr_vllm.demo.model import WIDTH, Trace, decoder_pass
from vtr_vllm.demo.tokenizer import FIRST_VISION
from vtr_vllm.demo.world import CELLS, VISION_TOKENS
from vtr_vllm.training.demo.batches import (
    COLUMNS,
    PATCH_COLUMNS,
    PATCH_ROWS,
    ROWS,
    embed_prefix,
    word_ids,
)

CELL_COUNT = CELLS * CELLS
END = FIRST_VISION + VISION_TOKENS
"""Where the registers stand in a prompt: right behind the vision tokens."""
CELL_OF_PATCH = PATCH_ROWS * CELLS + PATCH_COLUMNS
"""[144] of each patch."""


def registers_of_cells(count: int) -> Tensor:
    """Which of ``count`` registers stands for each cell, ``[36]``: neighbours share one."""
    return torch.arange(CELL_COUNT) * count // CELL_COUNT


def slots_of_cells(count: int) -> Tensor:
    """Which cell of its register each one is, ``[36]``, from 0."""
    owner = registers_of_cells(count)
    return torch.arange(CELL_COUNT) - torch.searchsorted(owner, owner)


class RegisterModel(nn.Module):
    """A demo model, of which the decoder's layers learn, and registers that do.

    ``slots``: for each number of registers that may stay, what turns a register's state into that of
    each of its cells. They are of use in training alone.
    """

    def __init__(self, llava: Any, count: int, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.llava = llava
        llava.requires_grad_(False)
        llava.model.language_model.layers.requires_grad_(True)
        llava.model.language_model.norm.requires_grad_(True)
        self.registers = nn.Parameter(self._places(count))
        self.slots = nn.ParameterDict(
            {str(kept): nn.Parameter(_rotations(-(-CELL_COUNT // kept))) for kept in counts}
        )

    def _places(self, count: int) -> Tensor:
        """Rows and columns of each one's cells, as words, as large as words are: so it finds them."""
        words = self.words.detach()
        owner = registers_of_cells(count)
        cells = torch.arange(CELL_COUNT)
        place = words[word_ids(ROWS)][cells // CELLS] + words[word_ids(COLUMNS)][cells % CELLS]
        mean = torch.zeros(count, WIDTH).index_add_(0, owner, place)
        return mean * (words.norm(dim=-1).mean() / mean.norm(dim=-1, keepdim=True).clamp(min=1e-6))

    @property
    def words(self) -> Tensor:
        """The word table, ``[128, 128]``."""
        table: Tensor = self.llava.model.language_model.embed_tokens.weight
        return table

    def learning(self) -> dict[str, nn.Parameter]:
        """The weights of a checkpoint that learn: what makes of the demo model the one with registers."""
        decoder = {n: w for n, w in self.llava.named_parameters() if w.requires_grad}
        return {**decoder, "registers": self.registers}


def _rotations(count: int) -> Tensor:
    """``[count, 128, 128]``: nothing is turned for the first, at random for the others."""
    draw = torch.Generator().manual_seed(count)
    turned = [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0] for _ in range(count)]
    return torch.stack([torch.eye(WIDTH), *turned[1:]])


@dataclass
class Passed:
    """What a pass found."""

    hidden: Tensor
    """``[b, text, 128]`` normed output of the text behind the prefix."""
    written: Tensor
    """``[b, kept, 128]`` the registers' states where all else of the image goes."""
    trace: Trace


def dropping_pass(
    model: RegisterModel,
    features: Tensor,
    text: Tensor,
    positions: Tensor,
    mask: Tensor,
    kept: int,
    layer: int,
    readers: Tensor | None = None,
) -> Passed:
    """Run the decoder; before layer ``layer`` all of an image goes but its first ``kept`` registers.

    text: ``[b, n, 128]`` embeddings behind the prefix, positions ``[b, n]`` as they are without
    registers, mask ``[b, 1, p + n, p + n]`` likewise; readers ``[b, r]`` rows of the text to trace.
    """
    count = len(model.registers)
    prefix = embed_prefix(model.words, features)
    own = model.registers.expand(len(features), -1, -1)
    x = torch.cat([prefix[:, :END], own, prefix[:, END:], text], 1)
    before = torch.arange(prefix.shape[1] + count).expand(len(x), -1)
    rows = torch.cat([torch.arange(END), torch.full((count,), END - 1)])
    rows = torch.cat([rows, torch.arange(END, mask.shape[-1])])
    # A register is seen as the last vision token is, and sees all before it.
    seen = mask[:, :, rows][..., rows] & torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    dropped = torch.cat([torch.arange(FIRST_VISION, END), torch.arange(END + kept, END + count)])
    keep = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, dropped, False).nonzero()[:, 0]
    written: list[Tensor] = []
    hidden, trace = decoder_pass(
        model.llava,
        x,
        torch.cat([before, positions + count], 1),
        seen,
        None if readers is None else readers + before.shape[1],
        partial(_cut, layer, written, slice(END, END + kept), keep),
    )
    return Passed(hidden[:, -text.shape[1] :], written[0], trace)


def _cut(
    layer: int, written: list[Tensor], own: slice, keep: Tensor, index: int, x: Tensor
) -> Tensor | None:
    if index != layer - 1:
        return None
    written.append(x[:, own])
    return keep
