"""Takes rotary positions back out of queries and keys, for rank rules that score without them."""

import torch
from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.mrope import apply_interleaved_rope


def unrotate(
    rotary: RotaryEmbeddingBase, positions: torch.Tensor, vectors: torch.Tensor
) -> torch.Tensor:
    """The inverse of ``rotary``.

    ``positions`` [rows], or [3, rows] with M-RoPE (time, height, width; arXiv 2409.12191, section
    2.1), ``vectors`` [rows, heads, head_dim] after rotation; returns float32 of the same shape. A rotation by angle a is undone by -a; scaled variants (YaRN) multiply cos and
    sin by a factor, which the division takes out again.
    """
    width = rotary.rotary_dim
    angles = rotary.cos_sin_cache[positions].float().to(vectors.device)
    cos, sin = (_merge_axes(rotary, part) for part in angles.chunk(2, dim=-1))
    scale = cos.square() + sin.square()
    cos, sin = (cos / scale)[:, None], (sin / scale)[:, None]
    turned, kept = vectors[..., :width].float(), vectors[..., width:].float()
    if rotary.is_neox_style:
        first, second = turned.chunk(2, dim=-1)
    else:
        first, second = turned[..., ::2], turned[..., 1::2]
    back = (first * cos + second * sin, second * cos - first * sin)
    joined = torch.cat(back, -1) if rotary.is_neox_style else torch.stack(back, -1).flatten(-2)
    return torch.cat([joined, kept], dim=-1)


def _merge_axes(rotary: RotaryEmbeddingBase, values: torch.Tensor) -> torch.Tensor:
    """Of cos or sin [3, rows, pairs], each pair's value on the axis that rotates it: [rows, pairs]."""
    if values.ndim == 2:
        return values
    assert isinstance(rotary, MRotaryEmbedding)
    if rotary.mrope_interleaved:
        return apply_interleaved_rope(values, rotary.mrope_section)
    sections = values.split(rotary.mrope_section, dim=-1)
    return torch.cat([section[axis] for axis, section in enumerate(sections)], dim=-1)
