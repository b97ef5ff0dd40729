"""The seeing half: a ViT-S/14 of DINOv2's form out of an ONNX file, as InternVL's tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import InternVLVisionConfig

from vtr_vllm.photo.parts import PATCH, SIDE

__all__ = ["LAYERS", "MEAN", "STD", "read_tower"]

LAYERS = 8
"""Of the file's twelve. The last ones know only what stands out: a linear probe of 900 scenes names .82 of 237
objects from the eighth layer's states and .54 from the twelfth's."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of a channel, as the tower was trained."""
_LAYER = {
    "lambda_1": "layer_scale1.lambda1",
    "lambda_2": "layer_scale2.lambda1",
    "layernorm_before.weight": "norm1.weight",
    "layernorm_before.bias": "norm1.bias",
    "layernorm_after.weight": "norm2.weight",
    "layernorm_after.bias": "norm2.bias",
}
_MATRIX = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.projection_layer": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""InternVL's names of a layer's weights and DINOv2's."""


def read_tower(path: Path) -> tuple[InternVLVisionConfig, dict[str, Tensor]]:
    """Return the configuration and the float32 weights, named as in Transformers' ``InternVLVisionModel``.

    The norm behind the last layer is a plain one, as the file's own belongs to its twelfth layer.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = {node.name: node.input for node in graph.node if node.op_type == "MatMul"}

    def own(name: str) -> Tensor:
        return torch.from_numpy(found[f"backbone.{name}"].copy())

    def matrix(layer: str, name: str) -> Tensor:
        """The exporter gave matrices numbers for names; the operation that uses one tells which it is."""
        operation = f"/backbone/encoder/{layer}/{name.replace('.', '/')}/MatMul"
        (stored,) = (x for x in inputs[operation] if x in found)
        return torch.from_numpy(np.ascontiguousarray(found[stored].T))

    weights = {
        "embeddings.cls_token": own("embeddings.cls_token"),
        "embeddings.position_embeddings": _positions(found),
        "layernorm.weight": torch.ones_like(own("layernorm.weight")),
        "layernorm.bias": torch.zeros_like(own("layernorm.bias")),
    }
    for kind in ("weight", "bias"):
        name = f"embeddings.patch_embeddings.projection.{kind}"
        weights[name] = own(name)
    for index in range(LAYERS):
        layer = f"layer.{index}"
        for name, theirs in _LAYER.items():
            weights[f"encoder.{layer}.{name}"] = own(f"encoder.{layer}.{theirs}")
        for name, theirs in _MATRIX.items():
            weights[f"encoder.{layer}.{name}.weight"] = matrix(layer, theirs)
            weights[f"encoder.{layer}.{name}.bias"] = own(f"encoder.{layer}.{theirs}.bias")
    width, mlp = own("layernorm.weight").numel(), weights["encoder.layer.0.mlp.fc1.bias"].numel()
    return _config(width, mlp), weights


def _config(width: int, mlp: int) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
        image_size=[SIDE, SIDE],
        patch_size=[PATCH, PATCH],
        attention_bias=True,
        use_qk_norm=False,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        use_absolute_position_embeddings=True,
        use_mean_pooling=False,
        hidden_act="gelu",
        layer_scale_init_value=1.0,
    )


def _positions(found: dict[str, np.ndarray]) -> Tensor:
    """Positions of the class token and of the 16 x 16 patches: those stored, for 37 x 37, made smaller
    as DINOv2 does."""
    (stored,) = (x for x in found.values() if x.ndim == 3 and x.shape[1] > 1 and x.shape[0] == 1)
    (first,) = (
        x for name, x in found.items() if x.shape == (1, 1, stored.shape[2]) and "." not in name
    )
    side = round(stored.shape[1] ** 0.5)
    grid = torch.from_numpy(stored.copy()).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    small = functional.interpolate(grid, size=(SIDE // PATCH, SIDE // PATCH), mode="bicubic")
    return torch.cat([torch.from_numpy(first.copy()), small.flatten(2).transpose(1, 2)], 1)
