"""A decoder layer in two, so that a cut can lie between its attention and the rest of it.

A cut before layer k ranks by the attention of layer k - 1. Behind that attention the dropped rows are of
no more use: neither its output projection nor its MLP, most of a layer's work, need see them. Rows do not
meet there, so the rows that stay are the same as with a cut at the layer's end.
"""

import copy
from typing import Any

import torch
from torch import nn

NORMS = ("input_layernorm", "attention_norm")
"""What a family calls the norm before attention."""
PROJECTIONS = ("o_proj", "wo")
"""What a family calls the projection behind attention."""


def _attention_name(layer: nn.Module) -> str:
    """Name of the child with attention as ``.attn``; raises ValueError where there is not one."""
    (name,) = (name for name, child in layer.named_children() if hasattr(child, "attn"))
    return name


def halves_of(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(up to attention, behind it), which share the weights of ``layer`` and are called as it is.

    The first gives what attention gives [rows, heads * head_dim] and the residual stream [rows, hidden];
    the second takes the same, of any of these rows, as its hidden states and its residual. Raises
    ValueError for a layer whose ``forward`` somebody wrapped: that would run all of it.
    """
    if "forward" in vars(layer):
        raise ValueError("a layer with a forward of its own has no halves")
    attention, norm = _attention_name(layer), _name(layer, NORMS)
    block = layer.get_submodule(attention)
    projection = _name(block, PROJECTIONS)
    behind = layer._modules.keys() - {attention, norm}
    head = _with(layer, dict.fromkeys(behind, _Same()))
    head._modules[attention] = _with(block, {projection: _SameWithBias()})
    tail = _with(layer, {norm: _Same(), attention: _Projected(block.get_submodule(projection))})
    return head, tail


def _name(module: nn.Module, known: tuple[str, ...]) -> str:
    (name,) = (name for name in known if hasattr(module, name))
    return name


def _with(module: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
    """``module`` with other children; everything else is shared."""
    made = copy.copy(module)
    made.__dict__["_modules"] = {**module._modules, **children}
    return made


class _Same(nn.Module):
    """In the place of a norm or an MLP: what comes in goes out."""

    def forward(self, first: torch.Tensor, *rest: Any) -> Any:
        return (first, *rest) if rest else first


class _SameWithBias(nn.Module):
    """In the place of a projection, which gives a bias beside its output."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden, None


class _Projected(nn.Module):
    """In the place of an attention block whose attention has run: the projection of what that gave."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.projection(hidden_states)[0]
        return projected
