"""Inference with ATP modules, one prompt at a time: dropped tokens are gone, positions stay.

What an engine that serves ATP must equal, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import DynamicCache

from vtr_vllm.atp.artefact import LORA, Artefact
from vtr_vllm.atp.module import AtpModules, Kept, Masking, all_kept, grid_scores
from vtr_vllm.search.calibration import Item
from vtr_vllm.training import lora
from vtr_vllm.training.atp.masked_attention import look
from vtr_vllm.training.attention import Rows, causal_bias
from vtr_vllm.training.llava import Example, Llava

__all__ = ["Answer", "Reference"]


@dataclass(frozen=True)
class Answer:
    """What was said to one item, and on how many vision tokens."""

    tokens: list[int]
    """With the one that ended it, where it ended by itself."""
    counts: tuple[int, ...]
    """Vision tokens in each decoder layer."""
    kept: tuple[tuple[int, ...], ...]
    """Behind each cut, as indices among the image's tokens, ascending."""


class _ShrinkingPass:
    """A pass over the rows that are left; the decision is made in the coordinates of all rows."""

    def __init__(self, modules: AtpModules, grid: Tensor, rows: Rows, masking: Masking) -> None:
        self._modules, self._grid, self._rows, self._masking = modules, grid, rows, masking
        size = rows.asking.shape[1]
        self.there = torch.arange(size, device=rows.asking.device)
        self.kept: list[Kept] = [all_kept(1, rows.vision.shape[1], rows.asking.device)]

    def bias(self, _layer: int) -> Tensor:
        return causal_bias(len(self.there), self.there.device)

    def looks_at(self, layer: int) -> bool:
        return layer + 1 in self._modules.layers

    def look(self, layer: int, attention: Tensor, values: Tensor) -> None:
        size = self._rows.asking.shape[1]
        whole = attention.new_zeros(1, size, size)
        whole[:, self.there[:, None], self.there] = attention
        spread = values.new_zeros(1, values.shape[1], size, values.shape[3])
        spread[:, :, self.there] = values
        index = self._modules.layers.index(layer + 1)
        self.kept.append(
            look(
                self._modules,
                index,
                whole,
                spread,
                self._rows,
                self._grid,
                self.kept[-1],
                self._masking,
            )
        )

    def drop(self) -> Tensor:
        """Which of the rows there stay behind the cut, as places among them."""
        gone = self._rows.vision[0][~self.kept[-1].alive[0]]
        stays = (~torch.isin(self.there, gone)).nonzero()[:, 0]
        self.there = self.there[stays]
        return stays


class Reference:
    """A LLaVA with trained modules."""

    def __init__(self, llava: Llava, artefact: Artefact) -> None:
        """Raises GeometryMismatch and ConfigurationError for modules of another model, or without their LoRA."""
        facts = artefact.facts
        facts.check_geometry(llava.geometry)
        facts.check_grid(llava.grid)
        facts.check_checkpoint(llava.checkpoint)
        if facts.lora is not None:
            lora.load(llava.decoder, facts.lora, facts.folder / LORA)
        self.llava, self.artefact = llava, artefact
        self._modules = artefact.modules.to(llava.device)
        self._grid = grid_scores(*llava.grid).to(llava.device)

    @classmethod
    def load(cls, model: str, folder: Path) -> Self:
        """``model``: as in training; ``folder``: what it left. Raises ConfigurationError."""
        return cls(Llava.load(model), Artefact.load(folder))

    @torch.no_grad()
    def answer(self, item: Item, max_tokens: int = 32) -> Answer:
        """The greedy answer to one item of one image; raises CalibrationError."""
        example = self.llava.example(item)
        cache = DynamicCache(config=self.llava.decoder.config)
        logits, shrunk = self._prefill(example, [], cache)
        tokens = [int(logits[-1].argmax())]
        while tokens[-1] not in self.llava.ends and len(tokens) < max_tokens:
            position = len(example.prompt) + len(tokens) - 1
            tokens.append(int(self._decode(tokens[-1], position, cache).argmax()))
        return Answer(tokens, self._counts(shrunk.kept), _indices(shrunk.kept))

    @torch.no_grad()
    def logits(self, example: Example) -> Tensor:
        """``[T, vocabulary]`` at the rows that predict the item's known answer, all in one pass."""
        cache = DynamicCache(config=self.llava.decoder.config)
        found, _ = self._prefill(example, example.answer, cache)
        return found[:-1] if example.answer else found

    def _prefill(
        self, example: Example, said: Sequence[int], cache: DynamicCache
    ) -> tuple[Tensor, _ShrinkingPass]:
        """Prompt and answer in one pass: logits from the prompt's last row on, ``[1 + said, vocabulary]``."""
        llava = self.llava
        batch = llava.batch([Example(example.item, example.prompt, [*said])])
        masking = Masking("hard", n_min=self.artefact.facts.n_min)
        shrinking = _ShrinkingPass(self._modules, self._grid, batch.rows, masking)
        hidden = llava.decoder.embed_tokens(batch.ids)
        features = llava.model.model.get_image_features(
            pixel_values=batch.pixels, return_dict=True
        ).pooler_output
        hidden[0, batch.rows.vision[0]] = torch.cat(list(features)).to(hidden.dtype)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = llava.decoder.rotary_emb(hidden, position_ids=positions)
        for index, layer in enumerate(llava.decoder.layers):
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=True,
                vtr=shrinking,
            )
            if shrinking.looks_at(index):
                stays = shrinking.drop()
                hidden, rotary = hidden[:, stays], (rotary[0][:, stays], rotary[1][:, stays])
        asked = hidden[0, -1 - len(said) :]
        return llava.model.lm_head(llava.decoder.norm(asked)), shrinking

    def _decode(self, token: int, position: int, cache: DynamicCache) -> Tensor:
        """Logits ``[vocabulary]`` behind one more token, which sees what each layer has kept."""
        llava = self.llava
        hidden = llava.decoder.embed_tokens(torch.tensor([[token]], device=llava.device))
        places = torch.tensor([[position]], device=llava.device)
        rotary = llava.decoder.rotary_emb(hidden, position_ids=places)
        for layer in llava.decoder.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=True,
            )
        found: Tensor = llava.model.lm_head(llava.decoder.norm(hidden))[0, 0]
        return found

    def _counts(self, kept: Sequence[Kept]) -> tuple[int, ...]:
        at = [sum(cut <= layer for cut in self._modules.layers) for layer in range(self._depth)]
        counts = [int(one.alive.sum()) for one in kept]
        return tuple(counts[index] for index in at)

    @property
    def _depth(self) -> int:
        return self.llava.geometry.layers


def _indices(kept: Sequence[Kept]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(one.alive[0].nonzero()[:, 0].tolist()) for one in kept[1:])
