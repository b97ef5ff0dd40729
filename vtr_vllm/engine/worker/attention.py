"""Attention metadata and slots of a planned step: what both runners' adapters share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.utils import AttentionGroup

from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.batch import BatchPlan, Segment
from vtr_vllm.reduction.request import IntArray
from vtr_vllm.upload import padded_size, upload_together

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

    @property
    def block_size(self) -> int:
        """Of all bands: they differ in how many blocks they hold, not in what a block is."""
        (size,) = {*self.block_sizes}
        return size


@dataclass(eq=False)
class Step:
    """One planned step on its way from the runner's adapter to the model's forward pass."""

    plan: BatchPlan
    bands: BandTables
    slots: dict[str, torch.Tensor] = field(default_factory=dict)
    """Layer name -> [rows of the layer] int64, device."""
    metadata: dict[str, object] = field(default_factory=dict)
    """Layer name -> the backend's attention metadata."""
    layer_names: Sequence[str] = ()
    """By depth."""
    group_of: Mapping[str, AttentionGroup] = field(default_factory=dict)
    """Layer name -> the group whose builder makes its metadata."""

    def follow(self, plan: BatchPlan, layer: int) -> None:
        """Go on by ``plan``, which is another one from ``layer`` on; earlier layers ran."""
        self.plan = plan
        _fill(self, [segment for segment in plan.segments if segment.end_layer > layer])


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
    """Build slots and metadata, once a segment; one copy to the device for all of them."""
    step = Step(plan, bands, layer_names=layer_names, group_of=groups_by_layer(attn_groups))
    _fill(step, plan.segments)
    return step


def _fill(step: Step, segments: Sequence[Segment]) -> None:
    """Write slots and metadata of the layers of ``segments``."""
    bands = step.bands
    places = _places(segments, bands)
    starts = [segment.query_start for segment in segments]
    lengths = [segment.seq_len for segment in segments]
    sent = upload_together([*places.sent, *starts, *lengths], bands.tables[0].device)
    slots = places.slots(bands, *sent[:2])
    count = len(segments)
    parts = zip(segments, starts, sent[2 : 2 + count], sent[2 + count :], slots, strict=True)
    for segment, start, query_start, seq_lens, slot_mapping in parts:
        common = CommonAttentionMetadata(
            query_start_loc=query_start,
            query_start_loc_cpu=torch.from_numpy(start.astype(np.int32)),
            seq_lens=seq_lens,
            seq_lens_cpu_upper_bound=torch.from_numpy(segment.seq_len.astype(np.int32)),
            num_reqs=len(segment.seq_len),
            num_actual_tokens=segment.num_rows,
            max_query_len=_longest(segment.query_len),
            max_seq_len=int(segment.seq_len.max()),
            block_table_tensor=bands.tables[segment.band],
            slot_mapping=slot_mapping,
            causal=True,
        )
        names = step.layer_names[segment.first_layer : segment.end_layer]
        built: dict[int, object] = {}
        for name in names:
            group = step.group_of[name]
            if id(group) not in built:
                # Fast: without a plan of the kernel's work ahead. A builder keeps one such
                # plan, and the segments of a band, which share it, run after all are built.
                built[id(group)] = _uncaptured(group.build_metadata(common, fast_build=True))
            step.metadata[name] = built[id(group)]
            step.slots[name] = slot_mapping


def _longest(query_len: np.ndarray) -> int:
    """A bound on the rows of a request, ``query_len`` int [requests].

    FlashAttention 2 takes a batch of at most one row each for one of exactly one row each, and folds the
    heads of a group into rows: where a request has none left it must not be told so.
    """
    longest = int(query_len.max())
    return longest if query_len.all() else max(2, longest)


def _uncaptured(metadata: Any) -> Any:
    """FlashAttention splits the keys of any step that is small enough for a graph into as many parts as
    a graph of it would: nothing here is captured, so the kernel may choose."""
    if getattr(metadata, "max_num_splits", 0) > 1:
        metadata.max_num_splits = 0
    return metadata


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the keys and values of all rows of all segments go, one segment after another."""

    rooms: list[int]
    """Per segment: its rows, and how many unused ones follow."""
    widths: list[int]
    """Per band: how many columns of its table are looked at."""
    sent: tuple[IntArray, IntArray]
    """Of each row: entry of the bands' tables, which stand side by side; place inside of that block."""

    def slots(
        self, bands: BandTables, entries: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """[rows] int64 of each segment; ``entries`` and ``offsets`` are what was sent."""
        columns = [table[:, :width] for table, width in zip(bands.tables, self.widths, strict=True)]
        blocks = torch.cat(columns, dim=1).view(-1).index_select(0, entries)
        slots = torch.empty(len(entries), dtype=torch.int64, device=entries.device)
        torch.add(offsets, blocks, alpha=bands.block_size, out=slots)
        return slots.split(self.rooms)[::2]


def _places(segments: Sequence[Segment], bands: BandTables) -> _Places:
    block_size = bands.block_size
    query_len = np.stack([segment.query_len for segment in segments])
    seq_len = np.stack([segment.seq_len for segment in segments])
    band = np.array([segment.band for segment in segments])
    widths = [
        -(-int(seq_len[band == index].max(initial=1)) // block_size)
        for index in range(len(bands.tables))
    ]
    first_column = np.cumsum(widths) - widths
    row_of_table = np.arange(query_len.shape[1]) * sum(widths)
    # A last request of each segment, which is nobody's: the rows that align the next one.
    rows = query_len.sum(axis=1)
    gaps = np.array([padded_size(int(size)) for size in rows]) - rows
    lengths = np.column_stack([query_len, gaps]).ravel()
    first_stored = np.column_stack([seq_len - query_len, np.zeros_like(gaps)]).ravel()
    entry = np.column_stack([row_of_table + first_column[band][:, None], np.zeros_like(gaps)])
    # Of each row: its place in its request's storage.
    stored = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    stored += np.repeat(first_stored, lengths)
    entries = np.repeat(entry.ravel(), lengths)
    return _Places(
        rooms=np.column_stack([rows, gaps]).ravel().tolist(),
        widths=widths,
        # Nobody's rows are read wherever there is something.
        sent=(
            np.minimum(entries + stored // block_size, query_len.shape[1] * sum(widths) - 1),
            stored % block_size,
        ),
    )


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
