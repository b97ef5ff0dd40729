"""Keys come back from where the CPU's own kernels put them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, _get_attn_isa

from vtr_vllm.engine.worker.prefix_keys import PrefixKeys
from vtr_vllm.errors import ConfigurationError

BLOCK, HEADS, WIDTH = 32, 2, 32
KINDS = ["auto"] + ["fp8", "fp8_e5m2"] * torch.cpu._is_avx512_supported()
MANTISSA = {"fp8": 3, "fp8_e5m2": 2}


def attention(kind: str, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> SimpleNamespace:
    """What we use of a layer's attention, with vLLM's kernel behind it and 8 blocks of cache."""
    impl = CPUAttentionBackendImpl.__new__(CPUAttentionBackendImpl)
    impl.attn_type, impl.kv_cache_dtype = "decoder", kind
    stored = dtype if kind == "auto" else torch.uint8
    return SimpleNamespace(
        impl=impl,
        isa=_get_attn_isa(dtype, BLOCK, WIDTH, kind),
        kv_cache=torch.zeros(8, HEADS, BLOCK, 2 * WIDTH, dtype=stored),
        num_kv_heads=HEADS,
        head_size=WIDTH,
        kv_cache_dtype=kind,
        dtype=dtype,
        attn_backend=SimpleNamespace(get_name=lambda: "CPU_ATTN"),
        _k_scale=torch.tensor(scale),
        _k_scale_float=scale,
        _v_scale_float=1.0,
    )


def write(layer: SimpleNamespace, keys: torch.Tensor, first_block: int) -> None:
    slots = torch.arange(len(keys)) + first_block * BLOCK
    layer.impl.do_kv_cache_update(layer, keys, keys, layer.kv_cache, slots)


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_read_back(kind: str, dtype: torch.dtype, scale: float) -> None:
    """From two blocks in any order; an fp8 cache keeps some bits of each."""
    layer = attention(kind, dtype, scale)
    reader = PrefixKeys(layer, BLOCK)
    generator = torch.Generator().manual_seed(1)
    keys = (2 * torch.randn(2 * BLOCK, HEADS, WIDTH, generator=generator)).to(dtype)
    write(layer, keys[:BLOCK], 6)
    write(layer, keys[BLOCK:], 3)
    for count in (1, BLOCK, 2 * BLOCK - 5):
        found = reader.read(layer, torch.tensor([6, 3, 0]), count)
        assert found.dtype == dtype
        if reader.rounds:
            step = 2.0 ** -MANTISSA[kind]
            smallest = scale * torch.finfo(torch.float8_e4m3fn).smallest_normal
            off = (found.float() - keys[:count].float()).abs()
            allowed = 1.01 * step * keys[:count].float().abs() + smallest
            assert (off <= allowed).all()
        else:
            assert torch.equal(found, keys[:count])


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_block_is_left_empty(kind: str) -> None:
    layer = attention(kind)
    PrefixKeys(layer, BLOCK)
    assert not layer.kv_cache.any()


def test_a_cache_that_does_not_keep_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = attention("auto")
    monkeypatch.setattr(layer.impl, "do_kv_cache_update", lambda *_: None)
    with pytest.raises(ConfigurationError, match="CPU_ATTN .* auto.*another --attention-backend"):
        PrefixKeys(layer, BLOCK)
