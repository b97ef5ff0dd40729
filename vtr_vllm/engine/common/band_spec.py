"""The KV-cache spec of a band: layers with equal specs form one of vLLM's KV-cache groups."""

from dataclasses import dataclass, fields, replace
from typing import Self

from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec

from vtr_vllm.errors import UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class BandSpec(FullAttentionSpec):
    """Full attention over the tokens that one band keeps."""

    band: int
    first_layer: int
    """The band stores what its first layer keeps; deeper layers of it use a part of the blocks."""

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        # vLLM asks by trying: an AssertionError is its "these do not belong together".
        assert all(spec == specs[0] for spec in specs), "layers of different bands"
        return replace(specs[0])

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())


def put_into_band(attention: Attention, band: int, first_layer: int) -> None:
    """Override the KV-cache spec of one attention layer instance."""
    stock = attention.get_kv_cache_spec

    def banded(vllm_config: VllmConfig) -> BandSpec:
        spec = stock(vllm_config)
        if type(spec) is not FullAttentionSpec:
            raise UnsupportedModel(
                f"layer {attention.layer_name} has the KV-cache spec {type(spec).__name__}; only"
                " full attention can be reduced"
            )
        values = {field.name: getattr(spec, field.name) for field in fields(spec)}
        return BandSpec(**values, band=band, first_layer=first_layer)

    attention.get_kv_cache_spec = banded
