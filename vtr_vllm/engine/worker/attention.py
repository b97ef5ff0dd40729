"""Attention metadata and slots of a planned step: what both runners' adapters share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.utils import AttentionGroup

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.batch import BatchPlan, Segment
from vtr_vllm.upload import upload

BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")
"""Attention backends whose metadata of one step stays true when the builder makes the next: it is
built for all segments of a band before the first of them runs. Others keep one plan a builder
(FlashInfer) or were never looked at."""


def check_backends(names: Collection[str]) -> None:
    """Refuse, by name, backends that are not in ``BACKENDS``; raises ConfigurationError."""
    unknown = sorted(set(names) - set(BACKENDS))
    if unknown:
        raise ConfigurationError(
            f"attention backend {', '.join(unknown)} is not known to keep the segments of a reduced"
            f" step apart; VTR runs with {', '.join(BACKENDS)}: start with --attention-backend"
            " FLASH_ATTN or TRITON_ATTN, or set VLLM_PLUGINS='' to serve this model without VTR"
        )


@dataclass(frozen=True, eq=False)
class BandTables:
    """The block tables of a step, by band."""

    tables: Sequence[torch.Tensor]
    """Per band: [R, blocks] int32, device."""
    block_sizes: Sequence[int]
    """Per band: tokens of a block, as the tables count them."""


@dataclass(eq=False)
class Step:
    """One planned step on its way from the runner's adapter to the model's forward pass."""

    plan: BatchPlan
    bands: BandTables
    slots: dict[str, torch.Tensor] = field(default_factory=dict)
    """Layer name -> [rows of the layer] int64, device."""
    metadata: dict[str, object] = field(default_factory=dict)
    """Layer name -> the backend's attention metadata."""


def band_groups(kv_cache_config: KVCacheConfig) -> list[int]:
    """KV-cache group of each band; empty when the layers are not banded."""
    bands = {
        group.kv_cache_spec.band: index
        for index, group in enumerate(kv_cache_config.kv_cache_groups)
        if isinstance(group.kv_cache_spec, BandSpec)
    }
    return [bands[band] for band in range(len(bands))]


def groups_by_layer(attn_groups: Sequence[Sequence[AttentionGroup]]) -> dict[str, AttentionGroup]:
    """Layer name -> the group whose builder makes its metadata."""
    return {name: group for groups in attn_groups for group in groups for name in group.layer_names}


def build_step(
    plan: BatchPlan,
    bands: BandTables,
    layer_names: Sequence[str],
    attn_groups: Sequence[Sequence[AttentionGroup]],
) -> Step:
    """Build slots and metadata, once a segment."""
    group_of = groups_by_layer(attn_groups)
    step = Step(plan, bands)
    for segment in plan.segments:
        common = _common_metadata(segment, bands)
        names = layer_names[segment.first_layer : segment.end_layer]
        built: dict[int, object] = {}
        for name in names:
            group = group_of[name]
            if id(group) not in built:
                # Fast: without a plan of the kernel's work ahead. A builder keeps one such
                # plan, and the segments of a band, which share it, run after all are built.
                built[id(group)] = group.build_metadata(common, fast_build=True)
            step.metadata[name] = built[id(group)]
            step.slots[name] = common.slot_mapping
    return step


def _common_metadata(segment: Segment, bands: BandTables) -> CommonAttentionMetadata:
    table = bands.tables[segment.band]
    device = table.device
    query_start, seq_lens = segment.query_start.astype(np.int32), segment.seq_len.astype(np.int32)
    return CommonAttentionMetadata(
        query_start_loc=upload(query_start, device),
        query_start_loc_cpu=torch.from_numpy(query_start),
        seq_lens=upload(seq_lens, device),
        seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens),
        num_reqs=len(segment.seq_len),
        num_actual_tokens=segment.num_rows,
        max_query_len=int(segment.query_len.max()),
        max_seq_len=int(segment.seq_len.max()),
        block_table_tensor=table,
        slot_mapping=_slots(segment, table, bands.block_sizes[segment.band]),
        causal=True,
    )


def _slots(segment: Segment, table: torch.Tensor, block_size: int) -> torch.Tensor:
    """[rows] int64: where each row's key and value go."""
    request, position = segment.storage()
    host = np.stack([request, position // block_size, position % block_size])
    rows = upload(host, table.device)
    return table[rows[0], rows[1]].long() * block_size + rows[2]


def padded(slots: Mapping[str, torch.Tensor], num_rows: int) -> dict[str, torch.Tensor]:
    """``slots`` lengthened to ``num_rows`` with -1, which backends skip: padding has no slot."""
    lengthened: dict[int, torch.Tensor] = {}
    for tensor in slots.values():
        if id(tensor) not in lengthened:
            missing = num_rows - len(tensor)
            lengthened[id(tensor)] = (
                torch.nn.functional.pad(tensor, (0, missing), value=-1) if missing > 0 else tensor
            )
    return {name: lengthened[id(tensor)] for name, tensor in slots.items()}
