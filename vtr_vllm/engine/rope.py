"""Takes rotary positions back out of queries and keys, for rank rules that score without them."""

import torch
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase


def unrotate(
    rotary: RotaryEmbeddingBase, positions: torch.Tensor, vectors: torch.Tensor
) -> torch.Tensor:
    """The inverse of ``rotary``.

    ``positions`` [rows], ``vectors`` [rows, heads, head_dim] after rotation; returns float32 of
    the same shape. A rotation by angle a is undone by -a; scaled variants (YaRN) multiply cos and
    sin by a factor, which the division takes out again.
    """
    width = rotary.rotary_dim
    cos, sin = rotary.cos_sin_cache[positions].float().to(vectors.device).chunk(2, dim=-1)
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
