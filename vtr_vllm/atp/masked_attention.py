"""Attention with a soft mask on the vision tokens, as an attention function of Transformers.

``install`` names our function in the decoder's config. A call of the model with ``atp=...`` brings a
``Pass``: its bias is added to the logits of every layer, and it looks at the attention of those layers
behind which tokens are dropped. Without one, attention is causal and nothing else.

A layer computes e^a G / sum(e^a G), with G_ij the weight of token j and G_ii = 1, as Dynamic-LLaVA does:
log G is the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from vtr_vllm.atp.module import (
    AtpModules,
    Kept,
    Masking,
    all_kept,
    cross_scores,
    self_scores,
)

__all__ = ["ATTENTION", "MaskedPass", "Pass", "Rows", "causal_bias", "install", "look"]

ATTENTION = "vtr_atp"
"""Name of our function among those of Transformers."""


class Pass(Protocol):
    """One forward pass of a batch, from the first decoder layer to the last."""

    def bias(self) -> Tensor:
        """What the next layer's logits gain, ``[B or 1, 1, R, R]`` float32; -inf where nobody looks."""

    def looks_at(self, layer: int) -> bool:
        """Whether tokens are dropped behind ``layer``."""

    def look(self, layer: int, attention: Tensor, values: Tensor) -> None:
        """Its softmax ``[B, R, R]``, mean over heads, and values ``[B, kv_heads, R, head_dim]``."""


@dataclass(frozen=True)
class Rows:
    """Where what stands in a batch of prompts; rows behind a prompt and its answer are padding."""

    vision: Tensor
    """``[B, N]``: rows of the image's tokens, in order."""
    asking: Tensor
    """bool ``[B, R]``: rows of the prompt's text behind the image."""
    last: Tensor
    """``[B]``: the last row of the prompt, which predicts the answer's first token."""


class MaskedPass:
    """A pass in which dropped tokens stay as rows that nobody else sees."""

    def __init__(self, modules: AtpModules, grid: Tensor, rows: Rows, masking: Masking) -> None:
        self._modules, self._grid, self._rows, self._masking = modules, grid, rows, masking
        batch, size = rows.asking.shape
        self._causal = causal_bias(size, rows.asking.device)
        self._bias = self._causal
        self.kept: list[Kept] = [all_kept(batch, rows.vision.shape[1], rows.asking.device)]
        """Before the first cut, and behind each."""

    def bias(self) -> Tensor:
        """The same for all layers between two cuts."""
        return self._bias

    def looks_at(self, layer: int) -> bool:
        """Whether a cut lies before the next layer."""
        return layer + 1 in self._modules.layers

    def look(self, layer: int, attention: Tensor, values: Tensor) -> None:
        """Decide at the cut behind ``layer``."""
        index = self._modules.layers.index(layer + 1)
        kept = look(
            self._modules,
            index,
            attention,
            values,
            self._rows,
            self._grid,
            self.kept[-1],
            self._masking,
        )
        self.kept.append(kept)
        batch, size = self._rows.asking.shape
        log_g = torch.zeros(batch, size, device=attention.device).scatter(
            1, self._rows.vision, kept.log_weight
        )
        itself = torch.eye(size, dtype=torch.bool, device=attention.device)
        self._bias = torch.where(itself, 0.0, self._causal + log_g[:, None, None, :])


def look(
    modules: AtpModules,
    index: int,
    attention: Tensor,
    values: Tensor,
    rows: Rows,
    grid: Tensor,
    before: Kept,
    masking: Masking,
) -> Kept:
    """The decision of the ``index``-th cut; ``attention`` and ``values`` as a ``Pass`` is shown them."""
    batch = torch.arange(len(attention), device=attention.device)
    seen = attention.gather(2, rows.vision[:, None, :].expand(-1, attention.shape[1], -1))
    among = seen.gather(1, rows.vision[:, :, None].expand(-1, -1, rows.vision.shape[1]))
    cut = modules.cut(index)
    state = values[batch, :, rows.last].flatten(1).float() if cut.shape.state else None
    received, asked = self_scores(among, before.weight), cross_scores(seen, rows.asking)
    kept: Kept = cut(received, asked, state, grid, before, masking)
    return kept


def causal_bias(rows: int, device: torch.device | None = None) -> Tensor:
    """0 where a row looks, -inf where it does not: ``[1, 1, rows, rows]`` float32."""
    hidden = torch.full((rows, rows), float("-inf"), device=device).triu(1)
    return hidden[None, None]


def install(decoder: Any) -> None:
    """Let a language model of Transformers attend through our function."""
    AttentionInterface.register(ATTENTION, _attend)
    decoder.set_attn_implementation(ATTENTION)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float,
    atp: Pass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Called by each decoder layer with ``[B, heads, R, head_dim]``; padding stands behind all else.

    There is no mask, as Transformers makes none for functions that it does not know.
    """
    groups = query.shape[1] // key.shape[1]
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if atp is not None and atp.looks_at(layer):
        logits = (query @ keys.transpose(2, 3)).float() * scaling
        probabilities = (logits + atp.bias()).softmax(-1)
        atp.look(layer, probabilities.mean(1), value)
        out = probabilities.to(query.dtype) @ values
    else:
        bias = None if atp is None else atp.bias().to(query.dtype)
        alone = bias is None and query.shape[2] > 1
        out = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, scale=scaling, is_causal=alone
        )
    return out.transpose(1, 2).contiguous(), None
