"""Runner V1 (the CPU's default): hands the plan of each step to the model.

A thin adapter: it reads vLLM's batch, and everything it computes is shared with runner V2.
"""

from typing import Any

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig

from vtr_vllm.engine.common.request_view import read_request
from vtr_vllm.engine.worker.attention import BandTables, band_groups, build_step
from vtr_vllm.engine.worker.model_reduction import Reduction
from vtr_vllm.reduction.batch import StepRequest, plan_batch
from vtr_vllm.reduction.request import ReducedRequest


class ReducingRunner:
    """Put before vLLM's GPUModelRunner or CPUModelRunner."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reduced: dict[str, ReducedRequest | None] = {}

    @property
    def reduction(self) -> Reduction | None:
        return getattr(self.get_model(), "reduction", None)

    def initialize_kv_cache(
        self, kv_cache_config: KVCacheConfig, is_profiling: bool = False, **kwargs: Any
    ) -> None:
        super().initialize_kv_cache(kv_cache_config, is_profiling, **kwargs)
        if self.reduction is not None and not is_profiling:
            self._bands = band_groups(self.kv_cache_config)
            self.reduction.bind_kv_cache(
                self.kv_cache_config, self.input_batch.block_table[0].block_size
            )

    def _on_request_state_removed(self, req_id: str, *args: Any, **kwargs: Any) -> None:
        super()._on_request_state_removed(req_id, *args, **kwargs)
        self._reduced.pop(req_id, None)
        if self.reduction is not None:
            self.reduction.decoder.adaptive_counts.forget(req_id)

    def _build_attention_metadata(
        self, *args: Any, num_scheduled_tokens: dict[str, int] | None = None, **kwargs: Any
    ) -> tuple[Any, CommonAttentionMetadata | None]:
        reduction = self.reduction
        if reduction is not None and num_scheduled_tokens is not None:
            plan = plan_batch(
                [
                    self._step_request(i, num_scheduled_tokens, reduction)
                    for i in range(self.input_batch.num_reqs)
                ],
                reduction.geometry.layers,
                reduction.bands.starts,
            )
            if plan is not None:
                step = build_step(
                    plan, self._band_tables(), reduction.decoder.layer_names, self.attn_groups
                )
                reduction.expect(step)
                return step.metadata, None
        return super()._build_attention_metadata(
            *args, num_scheduled_tokens=num_scheduled_tokens, **kwargs
        )

    def _step_request(
        self, index: int, num_scheduled_tokens: dict[str, int], reduction: Reduction
    ) -> StepRequest:
        batch = self.input_batch
        req_id = batch.req_ids[index]
        computed = int(batch.num_computed_tokens_cpu[index])
        asked = self._reduced_request(req_id, reduction)
        reduced = reduction.decoder.adaptive_counts.known(req_id, computed, asked)
        return StepRequest(computed, num_scheduled_tokens[req_id], reduced, req_id)

    def _reduced_request(self, req_id: str, reduction: Reduction) -> ReducedRequest | None:
        if req_id not in self._reduced:
            state = self.requests[req_id]
            params = state.sampling_params
            self._reduced[req_id] = read_request(
                params.extra_args if params is not None else None,
                state.mm_features,
                state.prompt_token_ids,
                reduction.bands,
            )
        return self._reduced[req_id]

    def _band_tables(self) -> BandTables:
        tables = [self.input_batch.block_table[group] for group in self._bands]
        num_reqs = self.input_batch.num_reqs
        return BandTables(
            [table.get_device_tensor(num_reqs) for table in tables],
            [table.block_size for table in tables],
        )
