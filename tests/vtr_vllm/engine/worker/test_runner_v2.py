"""What runner V2's adapter writes before a full graph is replayed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.input_batch import InputBatch

from tests.vtr_vllm.reduction.strategies import LAYERS, request_of
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.worker.adaptive_cuts import AdaptiveCounts
from vtr_vllm.engine.worker.decode_graphs import DecodeBuffers
from vtr_vllm.engine.worker.runner_v2 import ReducingModelState

BLOCK, MOST, BANDS, GROUPS = 16, 8, (0, 3), [1, 0]
"""vLLM numbered the bands' groups the other way round."""
CURVE = (1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.1)
REDUCED = request_of([range(6, 60)], 100, CURVE, ["last"] * 3)


@pytest.fixture
def state() -> Any:
    made: Any = ReducingModelState.__new__(ReducingModelState)
    geometry = SimpleNamespace(layers=LAYERS)
    reduction = SimpleNamespace(geometry=geometry, band_starts=BANDS, expect=lambda step: None)
    reduction.decoder = SimpleNamespace(adaptive_counts=AdaptiveCounts())
    made.model = SimpleNamespace(reduction=reduction)
    made._bands, made._block_sizes, made._reduced = GROUPS, [BLOCK] * 2, {"a": REDUCED}
    made._decode_buffers = DecodeBuffers(
        LayerBands(LAYERS, BANDS), GROUPS, MOST, torch.device("cpu")
    )
    return made


def replay(state: Any, computed: dict[str, int], padding: int) -> torch.Tensor:
    """Prepare a step of one token a request; returns the block tables [group, request, 16]."""
    count = len(computed)
    lengths = torch.tensor([*computed.values()] + [-1] * padding, dtype=torch.int32) + 1
    batch: Any = InputBatch.__new__(InputBatch)
    batch.req_ids, batch.num_reqs, batch.seq_lens = [*computed], count, lengths
    # Those of the arrays that are longer than the batch, as vLLM's may be, have more behind it.
    batch.num_computed_tokens_np = np.array([*computed.values(), 7], dtype=np.int32)
    batch.num_scheduled_tokens = np.ones(count, dtype=np.int32)
    tables = torch.arange(2 * MOST * 16, dtype=torch.int32).view(2, MOST, 16)[:, : len(lengths)]
    mappings = torch.full((2, len(lengths)), -1)
    for group in range(2):
        for i, length in enumerate(computed.values()):
            mappings[group, i] = tables[group, i, length // BLOCK] * BLOCK + length % BLOCK
    prepared = state.prepare_attn(
        batch, CUDAGraphMode.FULL, tuple(tables), mappings, [], SimpleNamespace()
    )
    assert prepared == {}, "the metadata that was captured is read"
    return tables


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("names", ["b", "ab", "bac"])
def test_a_replay_stores_where_each_layer_has_room(state: Any, names: str, padding: int) -> None:
    computed = {name: 100 + 11 * i for i, name in enumerate(names)}
    tables = replay(state, computed, padding)
    buffers = state._decode_buffers
    for layer in range(LAYERS):
        for i, (name, length) in enumerate(computed.items()):
            stored = length - (int(REDUCED.dropped[layer]) if name == "a" else 0)
            assert buffers.lengths[layer, i] == stored + 1
            table = tables[GROUPS[0] if layer < BANDS[1] else GROUPS[1]]
            slot = table[i, stored // BLOCK] * BLOCK + stored % BLOCK
            assert buffers.slots[layer, i] == slot
        behind = slice(len(names), len(names) + padding)
        assert buffers.lengths[layer, behind].tolist() == [0] * padding
        assert buffers.slots[layer, behind].tolist() == [-1] * padding
