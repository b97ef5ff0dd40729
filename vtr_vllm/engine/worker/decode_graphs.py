"""Decode steps in full CUDA graphs: lengths and slots by layer, in buffers that outlive a step.

A full graph replays the kernels of one captured step, attention included, with the addresses and the
host's numbers of that step. In a decode step no row moves. What differs from step to step, and with VTR
from layer to layer, is how many tokens are stored and where the new one goes: two buffers, written
before each replay. Everything else that a captured step reads is vLLM's, and vLLM keeps it current.
"""

import logging
from collections.abc import Collection, Sequence

import numpy as np
import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.utils import AttentionGroup

from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.worker.attention import BandTables, groups_by_layer
from vtr_vllm.engine.worker.decode_slots import DecodeSlots
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.request import IntArray
from vtr_vllm.upload import upload

logger = logging.getLogger("vllm.vtr")

_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN")
"""Whose kernels read all that changes from tensors. Others plan on the host, for each step anew, or
keep one plan for all layers of a group."""


def limit_graphs(vllm_config: VllmConfig, backends: Collection[str]) -> None:
    """Take out of the CUDA graph mode what reduction cannot follow, and say so.

    Full graphs are left to decode steps, on runner V2 and where every layer has an attention backend of
    ``_BACKENDS``. ``backends`` has the names of those in use.
    """
    compilation = vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    if mode is None or not mode.has_full_cudagraphs():
        return
    unknown = sorted(set(backends) - set(_BACKENDS))
    if unknown:
        used, why = _without_full(mode), f"attention backend {', '.join(unknown)}"
    elif not vllm_config.use_v2_model_runner:
        used, why = _without_full(mode), "runner V1"
    elif not mode.separate_routine():
        used, why = CUDAGraphMode.FULL_DECODE_ONLY, "rows leave in a reduced prefill"
    else:
        return
    compilation.cudagraph_mode = used
    logger.info("VTR runs with CUDA graph mode %s, not %s: %s", used, mode, why)


def _without_full(mode: CUDAGraphMode) -> CUDAGraphMode:
    return CUDAGraphMode.PIECEWISE if mode.has_piecewise_cudagraphs() else CUDAGraphMode.NONE


class DecodeBuffers:
    """The buffers of one runner, and the metadata that points into them. R requests, padding included."""

    def __init__(
        self, bands: LayerBands, groups: Sequence[int], max_reqs: int, device: torch.device
    ) -> None:
        self._bands, num_layers = bands.ranges, bands.layers
        of_layers = np.repeat(groups, [end - first for first, end in self._bands])
        self._groups = upload(of_layers, device)
        """[layers] KV-cache group of each layer, by ``groups`` of the bands."""
        self.lengths = torch.zeros(num_layers, max_reqs, dtype=torch.int32, device=device)
        """[layers, max_reqs] stored tokens of each request, the new one included."""
        self.slots = torch.full((num_layers, max_reqs), -1, dtype=torch.int64, device=device)
        """[layers, max_reqs] where the new token's key and value go; -1 for padding."""
        self._decode_slots = DecodeSlots(self._bands)

    def capture(
        self,
        tables: BandTables,
        query_start: torch.Tensor,
        max_seq_len: int,
        layer_names: Sequence[str],
        attn_groups: Sequence[Sequence[AttentionGroup]],
    ) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
        """(metadata, slots) by layer for a captured step of one token a request.

        ``query_start`` [R + 1] is vLLM's own buffer, ``max_seq_len`` the longest of all replays. The
        step itself reads no KV: its requests are padding.
        """
        count = len(query_start) - 1
        # Compiles what fills them, or the first step that is replayed would.
        nothing = self.lengths.new_zeros(len(self.lengths), count)
        self._decode_slots.fill(tables, nothing[0], nothing, self.lengths, self.slots)
        self.pad(count)
        group_of = groups_by_layer(attn_groups)
        metadata: dict[str, object] = {}
        for band, (first, end) in enumerate(self._bands):
            for layer in range(first, end):
                name = layer_names[layer]
                group = group_of[name]
                if group.kernel_block_size is not None:
                    raise ConfigurationError(
                        f"layer {name} has KV blocks that its attention backend splits, which no full"
                        " CUDA graph of VTR follows; start with --compilation-config.cudagraph_mode"
                        " PIECEWISE"
                    )
                common = self._common(layer, tables.tables[band], query_start, max_seq_len)
                # Fast: without a plan of the kernel's work, which a builder keeps once for all layers.
                metadata[name] = group.build_metadata(common, fast_build=True)
        return metadata, {name: self.slots[layer, :count] for layer, name in enumerate(layer_names)}

    def pad(self, count: int) -> None:
        """Write a step whose ``count`` requests are padding: nothing is stored."""
        self.lengths[:, :count] = 1
        self.slots[:, :count] = -1

    def fill_whole(self, seq_lens: torch.Tensor, slot_mappings: torch.Tensor) -> None:
        """Write a step in which every layer stores all, as in stock vLLM.

        ``seq_lens`` [R] int32, ``slot_mappings`` [KV-cache groups, R] int64, both on the device.
        """
        count = len(seq_lens)
        self.lengths[:, :count] = seq_lens
        self.slots[:, :count] = slot_mappings[:, :count].index_select(0, self._groups)

    def fill(self, tables: BandTables, seq_lens: torch.Tensor, dropped: IntArray) -> None:
        """Write the step that is replayed next: one copy and one kernel, whatever runs in it.

        ``seq_lens`` [R] int32 on the device counts every position of a request, 0 for padding;
        ``dropped`` [layers, requests] what each layer does not store of it. ``tables`` have R rows.
        """
        gone = np.zeros((len(dropped), len(seq_lens)), dtype=np.int32)
        gone[:, : dropped.shape[1]] = dropped
        there = upload(gone, seq_lens.device)
        self._decode_slots.fill(tables, seq_lens, there, self.lengths, self.slots)

    def _common(
        self, layer: int, table: torch.Tensor, query_start: torch.Tensor, max_seq_len: int
    ) -> CommonAttentionMetadata:
        count = len(query_start) - 1
        return CommonAttentionMetadata(
            query_start_loc=query_start,
            query_start_loc_cpu=torch.arange(count + 1, dtype=torch.int32),
            seq_lens=self.lengths[layer, :count],
            seq_lens_cpu_upper_bound=torch.full((count,), max_seq_len, dtype=torch.int32),
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=max_seq_len,
            block_table_tensor=table,
            slot_mapping=self.slots[layer, :count],
            causal=True,
        )
