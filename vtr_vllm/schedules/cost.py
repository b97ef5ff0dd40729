"""What a plan costs: prefill FLOPs and KV bytes of the language model, from whole counts.

A multiply-add counts as one, as in the papers. One decoder layer that sees n tokens, with
hidden size d, MLP width m, query width a = heads * head_dim and KV width v = kv_heads * head_dim:

    projections   2 n d a  (q, o)  +  2 n d v  (k, v)
    attention     2 n^2 a  (Q K^T and P V over the full square, as the papers' 2 n^2 d;
                            a causal kernel computes about half of it)
    MLP           3 n d m  (gated: gate, up, down)

With a = v = d this is 4 n d^2 + 2 n^2 d + 3 n d m (SparseVLM arXiv 2410.04417, FitPrune arXiv
2409.10197). FastV (arXiv 2403.06764) and DivPrune (arXiv 2503.02175) print 2 n d m, an ungated
MLP, although the models they measure have three matrices.

Not counted: the vision tower, the embedding and output matrices, normalisation, merging, and
ranking: one query row per cut by ``last``, more by other rules. FLOPs are not latency: measure that.
"""

from collections.abc import Sequence

from vtr_vllm.errors import GeometryMismatch
from vtr_vllm.schedules.geometry import ModelGeometry


def kv_tokens(counts: Sequence[int], n_text: int) -> tuple[int, ...]:
    """Tokens per layer whose KV is stored after prefill, ``[layers]``: kept vision and text."""
    return tuple(count + n_text for count in counts)


def prefill_flops(geometry: ModelGeometry, counts: Sequence[int], n_text: int) -> int:
    """Multiply-adds of one prefill with ``counts[layer]`` vision and ``n_text`` text tokens.

    Raises GeometryMismatch when ``counts`` has not one entry per layer.
    """
    _check_layers(geometry, counts)
    query_width = geometry.heads * geometry.head_dim
    kv_width = geometry.kv_heads * geometry.head_dim
    per_token = geometry.hidden_size * (
        2 * query_width + 2 * kv_width + 3 * geometry.intermediate_size
    )
    return sum(n * per_token + 2 * n * n * query_width for n in kv_tokens(counts, n_text))


def flops_fraction(
    geometry: ModelGeometry, counts: Sequence[int], n_vision: int, n_text: int
) -> float:
    """Prefill FLOPs of the plan over those of the unreduced prompt, in (0, 1].

    Raises GeometryMismatch as ``prefill_flops``, ValueError for a prompt without tokens.
    """
    if n_vision + n_text < 1:
        raise ValueError(f"a prompt of {n_vision} vision and {n_text} text tokens costs nothing")
    full = prefill_flops(geometry, [n_vision] * geometry.layers, n_text)
    return prefill_flops(geometry, counts, n_text) / full


def kv_bytes(geometry: ModelGeometry, counts: Sequence[int], n_text: int, dtype_bytes: int) -> int:
    """Bytes of keys and values after prefill, ``dtype_bytes`` per element, without block padding.

    Raises GeometryMismatch when ``counts`` has not one entry per layer.
    """
    _check_layers(geometry, counts)
    per_token = 2 * geometry.kv_heads * geometry.head_dim * dtype_bytes
    return per_token * sum(kv_tokens(counts, n_text))


def _check_layers(geometry: ModelGeometry, counts: Sequence[int]) -> None:
    if len(counts) != geometry.layers:
        raise GeometryMismatch(
            f"counts for {len(counts)} layers, the model is {geometry.fingerprint}; make the plan"
            " from a schedule of this model"
        )
