"""FlashAttention 3 in torch: takes what the kernel takes, checks what it checks, answers what it answers.

The checks are those of ``mha_fwd`` in FlashAttention's hopper/flash_api.cpp.
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
import vllm


def signature(name: str) -> inspect.Signature:
    """Of a function of vLLM's interface to FlashAttention, whose package does not import without a GPU's."""
    path = Path(vllm.__file__).with_name("vllm_flash_attn") / "flash_attn_interface.py"
    spec = importlib.util.spec_from_file_location("flash_attn_interface", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return inspect.signature(getattr(module, name))


SIGNATURE = signature("flash_attn_varlen_func")
KNOWN = {
    *("q", "k", "v", "out", "cu_seqlens_q", "max_seqlen_q", "seqused_k", "max_seqlen_k"),
    *("softmax_scale", "causal", "alibi_slopes", "window_size", "block_table", "softcap"),
    *("scheduler_metadata", "fa_version", "q_descale", "k_descale", "v_descale"),
    *("dynamic_causal", "num_splits", "s_aux", "mask_mod", "aux_tensors"),
}
"""What vLLM gives; a new one may mean something that the metadata has to carry."""


def attend(**given: Any) -> torch.Tensor:
    """``flash_attn_varlen_func``, causal and paged."""
    call = SIGNATURE.bind(**given)
    assert set(given) == KNOWN
    call.apply_defaults()
    asked = call.arguments
    _check(asked)
    query, out = asked["q"], asked["out"]
    starts, lengths = asked["cu_seqlens_q"].tolist(), asked["seqused_k"].tolist()
    keys, values = asked["k"], asked["v"]
    for index, length in enumerate(lengths):
        first, end = starts[index], starts[index + 1]
        if first == end or not length:
            continue
        pages = asked["block_table"][index, : -(-length // keys.shape[1])].long()
        key = keys[pages].flatten(0, 1)[:length].float()
        value = values[pages].flatten(0, 1)[:length].float()
        group = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(group, 1) for part in (key, value))
        logits = torch.einsum("qhd,khd->hqk", query[first:end].float(), key)
        rows = end - first
        late = torch.ones(rows, length, dtype=torch.bool).triu(length - rows + 1)
        logits = (logits * asked["softmax_scale"]).masked_fill(late, -torch.inf)
        out[first:end] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), value).to(out.dtype)
    return out


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    kv_cache_dtype: str,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
) -> None:
    """``reshape_and_cache_flash``: a row without a slot is skipped."""
    assert slots.dtype == torch.int64
    assert slots.is_contiguous()
    block, place = slots // key_cache.shape[1], slots % key_cache.shape[1]
    there = slots >= 0
    key_cache[block[there], place[there]] = key[: len(slots)][there]
    value_cache[block[there], place[there]] = value[: len(slots)][there]


def _check(asked: dict[str, Any]) -> None:
    query, keys, out, table = (asked[name] for name in ("q", "k", "out", "block_table"))
    count = len(asked["cu_seqlens_q"]) - 1
    for name in ("cu_seqlens_q", "seqused_k"):
        assert asked[name].dtype == torch.int32, name
        assert asked[name].is_contiguous(), name
    assert asked["seqused_k"].shape == (count,)
    assert table.dtype == torch.int32
    assert table.stride(-1) == 1
    assert table.shape[0] == count
    assert asked["max_seqlen_k"] <= table.shape[1] * keys.shape[1]
    assert query.dtype == keys.dtype == asked["v"].dtype
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert query.stride(-1) == keys.stride(-1) == out.stride(-1) == 1
    assert query.shape == out.shape
    assert query.shape[-1] % 8 == 0
    for name in ("max_seqlen_q", "max_seqlen_k", "num_splits"):
        assert type(asked[name]) is int, name
    rows = asked["cu_seqlens_q"].diff()
    assert asked["max_seqlen_q"] >= int(rows.max())
    assert asked["max_seqlen_k"] >= int(asked["seqused_k"].max())
    assert len(query) >= int(asked["cu_seqlens_q"][-1])
    assert asked["causal"] is True
    assert asked["scheduler_metadata"] is None, "a plan for other rows would be followed"
    assert asked["window_size"] in (None, [-1, -1])
    assert not asked["softcap"]
    absent = ("dynamic_causal", "s_aux", "mask_mod", "aux_tensors", "alibi_slopes")
    assert [asked[name] for name in absent] == [None] * len(absent)
