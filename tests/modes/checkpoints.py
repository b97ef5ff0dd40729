"""Tiny checkpoints that some modes need: a LoRA adapter, quantised weights. Written by hand, in the
layouts of the hub, from the weights of ``tests/tiny.py``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import TinyShape

RANK = 4
ALPHA = 8
GROUP = 32

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_DECODER = "language_model.model.layers."


def write_adapter(base: Path, adapter: Path, merged: Path) -> None:
    """A LoRA adapter of peft's layout for queries and values; ``merged`` has it in its weights."""
    generator = torch.Generator().manual_seed(3)
    shape = TinyShape()
    weights, tensors = load_file(base / "model.safetensors"), {}
    sizes = {"q_proj": shape.heads * shape.head_dim, "v_proj": shape.kv_heads * shape.head_dim}
    for layer in range(shape.layers):
        for name, outer in sizes.items():
            key = f"{_DECODER}{layer}.self_attn.{name}"
            down = torch.randn(RANK, shape.hidden, generator=generator) / shape.hidden**0.5
            up = 0.6 * torch.randn(outer, RANK, generator=generator)
            tensors[f"base_model.model.{key}.lora_A.weight"] = down
            tensors[f"base_model.model.{key}.lora_B.weight"] = up
            weights[f"{key}.weight"] += ALPHA / RANK * up @ down
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    config |= {"target_modules": [*sizes], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    _copy(base, merged, weights)


def write_int4(base: Path, quantised: Path, plain: Path) -> None:
    """4-bit weights in groups, 16-bit activations; ``plain`` has the same values unpacked."""

    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        groups = weight.unflatten(1, (-1, GROUP))
        scale = groups.abs().amax(-1, keepdim=True) / 7
        rounded = (groups / scale).round().clamp(-8, 7)
        parts = {
            "weight_packed": pack_to_int32(rounded.flatten(1).to(torch.int8), 4),
            "weight_scale": scale.squeeze(-1),
            "weight_shape": torch.tensor(weight.shape),
        }
        return parts, (rounded * scale).flatten(1)

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP}
    weights |= {"strategy": "group", "dynamic": False}
    scheme = {"weights": weights, "input_activations": None}
    _write_quantised(base, quantised, plain, quantise, "pack-quantized", scheme)


def write_int8(base: Path, quantised: Path, plain: Path) -> None:
    """8-bit weights by channel, 8-bit activations by token; ``plain`` has the same weights."""

    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 127
        rounded = (weight / scale).round()
        return {"weight": rounded.to(torch.int8), "weight_scale": scale}, rounded * scale

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    scheme = {"weights": weights | {"dynamic": False}, "input_activations": inputs}
    _write_quantised(base, quantised, plain, quantise, "int-quantized", scheme)


def _write_quantised(
    base: Path,
    quantised: Path,
    plain: Path,
    quantise: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]],
    layout: str,
    scheme: dict[str, object],
) -> None:
    """The decoder's linear layers quantised, in compressed-tensors' layout; all else as it is."""
    weights = load_file(base / "model.safetensors")
    unpacked = dict(weights)
    for name in [*weights]:
        layer, part = name.rpartition(".")[::2]
        if name.startswith(_DECODER) and layer.endswith(_LINEARS) and part == "weight":
            parts, unpacked[name] = quantise(weights.pop(name))
            weights |= {f"{layer}.{key}": value.contiguous() for key, value in parts.items()}
    _copy(base, plain, unpacked)
    group = {"targets": ["Linear"], "output_activations": None, "format": layout} | scheme
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [
            "lm_head",
            "re:.*lm_head",
            "re:.*vision_tower.*",
            "re:.*multi_modal_projector.*",
        ],
    }
    _copy(base, quantised, weights)
    (quantised / "config.json").write_text(json.dumps(config, indent=1))


def _copy(base: Path, folder: Path, weights: dict[str, Tensor]) -> None:
    shutil.copytree(base, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
