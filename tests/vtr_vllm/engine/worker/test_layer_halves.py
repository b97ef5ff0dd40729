"""Layers in two halves: of the real classes, with children that are small enough to check."""

from __future__ import annotations

import ast
import inspect
import textwrap
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from vtr_vllm.engine.common.supported_models import SUPPORTED_DECODERS
from vtr_vllm.engine.worker.layer_halves import PROJECTIONS, halves_of

ROWS, WIDTH, ATTENDED = 7, 6, 10
LAYERS = {
    "Glm4Model": "glm4.Glm4DecoderLayer",
    "Glm4MoeModel": "glm4_moe.Glm4MoeDecoderLayer",
    "InternLM2Model": "internlm2.InternLMDecoderLayer",
    "LlamaModel": "llama.LlamaDecoderLayer",
    "MistralModel": "mistral.MistralDecoderLayer",
    "Qwen2Model": "qwen2.Qwen2DecoderLayer",
    "Qwen3LLMModel": "qwen3.Qwen3DecoderLayer",
    "Qwen3Model": "qwen3.Qwen3DecoderLayer",
    "Qwen3MoeLLMModel": "qwen3_moe.Qwen3MoeDecoderLayer",
    "Qwen3MoeModel": "qwen3_moe.Qwen3MoeDecoderLayer",
}
"""vLLM's decoders -> what their layers are."""


def class_of(path: str) -> Any:
    module, name = path.split(".")
    return getattr(import_module(f"vllm.model_executor.models.{module}"), name)


def test_a_layer_with_a_wrapped_forward_has_no_halves() -> None:
    """As vLLM's offloaders wrap it: both halves would run the whole layer."""
    layer = nn.Module()
    layer.forward = lambda *rows: rows
    with pytest.raises(ValueError, match="forward of its own"):
        halves_of(layer)


class Norm(nn.Module):
    """A norm of vLLM's: with a residual it adds first, and gives both."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return torch.tanh(self.scale * hidden)
        total = hidden + residual
        return torch.tanh(self.scale * total), total


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, ATTENDED))

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden @ self.weight.T, None


class Block(nn.Module):
    """Attention in which every row sees those before it."""

    def __init__(self, projection: str) -> None:
        super().__init__()
        self.attn = nn.Linear(WIDTH, ATTENDED)
        self._projection = projection
        setattr(self, projection, Projection())

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.attn(hidden_states * positions[:, None]).cumsum(0)
        return getattr(self, self._projection)(attended)[0]


def real_layer(path: str) -> nn.Module:
    """A layer of a real class; its forward is what is tested."""
    torch.manual_seed(0)
    internlm = "internlm2" in path
    attention, norm, mlp = (
        ("attention", "attention_norm", "feed_forward")
        if internlm
        else ("self_attn", "input_layernorm", "mlp")
    )
    layer: nn.Module = class_of(path).__new__(class_of(path))
    nn.Module.__init__(layer)
    layer.add_module(norm, Norm(0.5))
    layer.add_module(attention, Block("wo" if internlm else "o_proj"))
    layer.add_module("ffn_norm" if internlm else "post_attention_layernorm", Norm(0.7))
    layer.add_module(mlp, nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()))
    if "glm4." in path:
        layer.add_module("post_self_attn_layernorm", Norm(0.9))
        layer.add_module("post_mlp_layernorm", Norm(1.1))
    if "mistral" in path:
        layer.ada_rms_norm_t_cond = None
    return layer


def test_every_decoder_that_is_served_is_here() -> None:
    assert set(LAYERS) == set(SUPPORTED_DECODERS)


@pytest.mark.parametrize("first", [True, False], ids=["first layer", "a later one"])
@pytest.mark.parametrize("path", sorted(set(LAYERS.values())))
@torch.no_grad()
def test_rows_that_stay_are_those_of_the_whole_layer(path: str, first: bool) -> None:
    layer = real_layer(path)
    children = dict(layer.named_children())
    head, tail = halves_of(layer)
    positions, stay = torch.arange(1, ROWS + 1), torch.tensor([0, 2, 3, 6])
    hidden = torch.randn(ROWS, WIDTH)
    residual = None if first else torch.randn(ROWS, WIDTH)
    whole = layer(positions, hidden, residual)
    attended, stream = head(positions, hidden, residual)
    assert attended.shape == (ROWS, ATTENDED)
    rest = tail(positions[stay], attended[stay], stream[stay])
    for ours, theirs in zip(rest, whole, strict=True):
        torch.testing.assert_close(ours, theirs[stay])
    assert dict(layer.named_children()) == children, "the layer is as it was"
    shared = {id(weight) for half in (head, tail) for weight in half.parameters()}
    assert shared == {id(weight) for weight in layer.parameters()}, "no weight is copied"


@pytest.mark.parametrize(
    "path",
    [
        "glm4.Glm4Attention",
        "glm4_moe.Glm4MoeAttention",
        "internlm2.InternLM2Attention",
        "llama.LlamaAttention",
        "mistral.MistralAttention",
        "qwen2.Qwen2Attention",
        "qwen3.Qwen3Attention",
        "qwen3_moe.Qwen3MoeAttention",
    ],
)
def test_a_projection_is_the_last_that_attention_does(path: str) -> None:
    forward = textwrap.dedent(inspect.getsource(class_of(path).forward))
    *_, projected, returned = ast.parse(forward).body[0].body  # type: ignore[attr-defined]
    assert ast.unparse(returned) == "return output"
    assert ast.unparse(projected) in {f"output, _ = self.{p}(attn_output)" for p in PROJECTIONS}
