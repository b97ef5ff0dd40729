"""Safetensors files that are written at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from vtr_vllm.whole_file import whole_file_of_bytes

__all__ = ["save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write a safetensors file; OSError passes through."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file_of_bytes(path) as file:
        file.write(save(plain, metadata={"format": "pt", **metadata}))
