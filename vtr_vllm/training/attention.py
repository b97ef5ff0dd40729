"""Our attention in a decoder of Transformers, with a bias of our own in every layer.

``install`` names our function in the decoder's config. A call of the model with ``vtr=...`` brings a
``Pass``: its bias is added to the logits of every layer, and it looks at the attention of those layers
that it asks for. Without one, attention is causal and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

__all__ = ["ATTENTION", "Pass", "Rows", "causal_bias", "install"]

ATTENTION = "vtr"
"""Name of our function among those of Transformers."""


class Pass(Protocol):
    """One forward pass of a batch, from the first decoder layer to the last."""

    def bias(self, layer: int) -> Tensor:
        """What a layer's logits gain, ``[B or 1, 1, R, R]`` float32; -inf where nobody looks."""

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
    vtr: Pass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Called by each decoder layer with ``[B, heads, R, head_dim]``; padding stands behind all else.

    There is no mask, as Transformers makes none for functions that it does not know.
    """
    groups = query.shape[1] // key.shape[1]
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if vtr is not None and vtr.looks_at(layer):
        logits = (query @ keys.transpose(2, 3)).float() * scaling
        probabilities = (logits + vtr.bias(layer)).softmax(-1)
        vtr.look(layer, probabilities.mean(1), value)
        out = probabilities.to(query.dtype) @ values
    else:
        bias = None if vtr is None else vtr.bias(layer).to(query.dtype)
        alone = bias is None and query.shape[2] > 1
        out = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, scale=scaling, is_causal=alone
        )
    return out.transpose(1, 2).contiguous(), None
