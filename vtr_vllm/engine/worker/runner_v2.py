"""Runner V2 (the GPU's default): hands the plan of each step to the model.

A thin adapter: it reads vLLM's batch, and everything it computes is shared with runner V1.
"""

from typing import Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.utils import AttentionGroup

from vtr_vllm.engine.common.request_view import read_request
from vtr_vllm.engine.worker.attention import BandTables, Step, band_groups, build_step
from vtr_vllm.engine.worker.decode_graphs import DecodeBuffers
from vtr_vllm.engine.worker.model_reduction import Reduction
from vtr_vllm.reduction.batch import BatchPlan, StepRequest, dropped_tokens, plan_batch
from vtr_vllm.reduction.request import ReducedRequest


class ReducingModelState(DefaultModelState):
    """vLLM's model state, with the requests' plans."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reduced: dict[str, ReducedRequest] = {}

    @property
    def reduction(self) -> Reduction | None:
        return self.model.reduction

    def initialize_kv_cache(
        self, kv_cache_config: KVCacheConfig, block_tables: BlockTables
    ) -> None:
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if self.reduction is not None:
            self._bands = band_groups(kv_cache_config)
            self._block_sizes = [block_tables.block_sizes[group] for group in self._bands]
            self._decode_buffers = DecodeBuffers(
                self.reduction.bands, self._bands, self.max_num_reqs, self.device
            )
            self.reduction.bind_kv_cache(kv_cache_config, self._block_sizes[0])

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        if self.reduction is None or new_req_data.sampling_params is None:
            return
        reduced = read_request(
            new_req_data.sampling_params.extra_args,
            new_req_data.mm_features,
            new_req_data.prompt_token_ids,
            self.reduction.bands,
        )
        if reduced is not None:
            self._reduced[new_req_data.req_id] = reduced

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self._reduced.pop(req_id, None)
        if self.reduction is not None:
            self.reduction.decoder.adaptive_counts.forget(req_id)

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        reduction = self.reduction
        if reduction is not None:
            reduction.expect(None)
            tables = BandTables([block_tables[band] for band in self._bands], self._block_sizes)
            if for_capture and cudagraph_mode != CUDAGraphMode.FULL:
                return self._capture(reduction, tables, input_batch, attn_groups)
            requests = self._step_requests(input_batch, reduction)
            if cudagraph_mode == CUDAGraphMode.FULL:
                # A replay, which reads the metadata that was captured.
                if for_capture:  # of a data-parallel rank that has no request
                    self._decode_buffers.pad(input_batch.num_reqs)
                else:
                    dropped = dropped_tokens(requests, reduction.geometry.layers)
                    if dropped.any():
                        self._decode_buffers.fill(tables, input_batch.seq_lens, dropped)
                    else:
                        self._decode_buffers.fill_whole(input_batch.seq_lens, slot_mappings)
                return {}
            plan = plan_batch(requests, reduction.geometry.layers, reduction.bands.starts)
            if plan is not None:
                step = build_step(plan, tables, reduction.decoder.layer_names, attn_groups)
                reduction.expect(step)
                return step.metadata
        return super().prepare_attn(
            input_batch,
            cudagraph_mode,
            block_tables,
            slot_mappings,
            attn_groups,
            kv_cache_config,
            for_capture,
            ubatch_idx,
            **kwargs,
        )

    def _capture(
        self,
        reduction: Reduction,
        tables: BandTables,
        batch: InputBatch,
        attn_groups: list[list[AttentionGroup]],
    ) -> dict[str, Any]:
        """Prepare the step that a full graph captures."""
        assert batch.num_tokens == batch.num_reqs, "full graphs are of decode steps"
        metadata, slots = self._decode_buffers.capture(
            tables,
            batch.query_start_loc,
            self.max_model_len,
            reduction.decoder.layer_names,
            attn_groups,
        )
        plan = BatchPlan(
            np.ones(batch.num_reqs, dtype=np.int64), segments=(), cuts={}, vision=None, image=None
        )
        reduction.expect(Step(plan, tables, slots, metadata))
        return metadata

    def _step_requests(self, batch: InputBatch, reduction: Reduction) -> list[StepRequest]:
        """Those of the batch, in its order; none where none of them is reduced."""
        if self._reduced.keys().isdisjoint(batch.req_ids):
            return []
        known = reduction.decoder.adaptive_counts.known
        return [
            StepRequest(
                int(computed),
                int(scheduled),
                known(req_id, int(computed), self._reduced.get(req_id)),
                req_id,
            )
            for req_id, computed, scheduled in zip(
                batch.req_ids,
                batch.num_computed_tokens_np[: batch.num_reqs],
                batch.num_scheduled_tokens[: batch.num_reqs],
                strict=True,
            )
        ]
