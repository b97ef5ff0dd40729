"""The buffers that full CUDA graphs of decode steps read, against explicit sets of kept tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.config import CUDAGraphMode, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends import flash_attn
from vllm.v1.worker.utils import AttentionGroup

from tests.tiny import tiny_llava
from tests.vtr_vllm.engine.worker.tables import tables_of
from tests.vtr_vllm.reduction.strategies import LAYERS, band_lists, drawn_order, reduced_requests
from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.worker.attention import BandTables
from vtr_vllm.engine.worker.decode_graphs import DecodeBuffers, limit_graphs
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.batch import StepRequest, dropped_tokens

BLOCK = 4
MOST = 8
"""Requests that the buffers have room for."""
NAMES = [f"layer {i}" for i in range(LAYERS)]


@st.composite
def decode_requests(draw):
    """One token of a request past its prompt, or of one that is not reduced."""
    request = draw(st.none() | reduced_requests())
    least = 0 if request is None else request.prompt_len
    return StepRequest(least + draw(st.integers(0, 20)), 1, request)


decode_steps = st.lists(decode_requests(), min_size=1, max_size=4)


def captured(buffers: DecodeBuffers, tables: BandTables, count: int):
    """What a captured step of ``count`` requests holds on to, the backend's metadata as it is asked for."""
    group = SimpleNamespace(
        layer_names=NAMES, kernel_block_size=None, build_metadata=lambda common, fast_build: common
    )
    query_start = torch.arange(count + 1, dtype=torch.int32)
    return buffers.capture(tables, query_start, 1024, NAMES, [[group]])


@given(decode_steps, decode_steps, band_lists, st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_a_captured_step_reads_what_is_filled_in(first, second, bands, padding):
    buffers = DecodeBuffers(LayerBands(LAYERS, bands), range(len(bands)), MOST, torch.device("cpu"))
    count = max(len(first), len(second)) + padding
    tables = tables_of(bands, count, BLOCK)
    metadata, slots = captured(buffers, tables, count)
    for step in (first, second):
        seq_lens = torch.zeros(count, dtype=torch.int32)
        seq_lens[: len(step)] = torch.tensor([r.computed + r.scheduled for r in step])
        buffers.fill(tables, seq_lens, dropped_tokens(step, LAYERS))
        for layer, name in enumerate(NAMES):
            common = metadata[name]
            band = int(np.searchsorted(bands, layer, side="right")) - 1
            assert common.block_table_tensor is tables.tables[band]
            assert common.num_reqs == common.num_actual_tokens == count
            kept = [drawn_order(request, 0) for request in step]
            lengths = [len(one.positions(layer)) for one in kept]
            assert common.seq_lens.tolist() == lengths + [0] * (count - len(step))
            places = [int(one.storage(layer)[0]) for one in kept]
            expected = [
                int(tables.tables[band][i, place // BLOCK]) * BLOCK + place % BLOCK
                for i, place in enumerate(places)
            ]
            assert slots[name].tolist() == expected + [-1] * (count - len(step))
            assert common.slot_mapping.data_ptr() == slots[name].data_ptr()


@pytest.mark.parametrize("padding", [0, 2])
def test_a_step_in_which_nothing_is_dropped_is_that_of_vllm(padding):
    """The slots that vLLM computed, of each band's own group: the same as ours."""
    bands, groups, count = (0, 3, 5), (2, 0, 1), 3
    tables = tables_of(bands, count + padding, BLOCK)
    seq_lens = torch.tensor([1, BLOCK, 3 * BLOCK + 2] + [0] * padding, dtype=torch.int32)
    ours, whole = (
        DecodeBuffers(LayerBands(LAYERS, bands), groups, MOST, torch.device("cpu"))
        for _ in range(2)
    )
    ours.fill(tables, seq_lens, np.zeros((LAYERS, count), np.int64))
    mappings = torch.full((len(groups), MOST), -1)
    for band, group in enumerate(groups):
        for i, length in enumerate(seq_lens[:count].tolist()):
            block = tables.tables[band][i, (length - 1) // BLOCK]
            mappings[group, i] = block * BLOCK + (length - 1) % BLOCK
    whole.fill_whole(seq_lens, mappings)
    assert torch.equal(whole.slots, ours.slots)
    assert torch.equal(whole.lengths, ours.lengths)


def test_a_captured_step_is_padding():
    buffers = DecodeBuffers(LayerBands(LAYERS, (0, 3)), (0, 1), MOST, torch.device("cpu"))
    tables = tables_of((0, 3), 2, BLOCK)
    buffers.fill(tables, torch.tensor([5, 9], dtype=torch.int32), np.zeros((LAYERS, 2), np.int64))
    metadata, slots = captured(buffers, tables, 2)
    for name in NAMES:
        assert metadata[name].seq_lens.tolist() == [1, 1]
        assert metadata[name].max_seq_len == 1024
        assert slots[name].tolist() == [-1, -1]
    buffers.fill(tables, torch.tensor([5, 9], dtype=torch.int32), np.zeros((LAYERS, 2), np.int64))
    buffers.pad(1)
    assert [slots[name].tolist()[0] for name in NAMES] == [-1] * LAYERS
    assert [slots[name].tolist()[1] >= 0 for name in NAMES] == [True] * LAYERS


@pytest.mark.parametrize("version", [2, 3, 4])
def test_metadata_of_flash_attention_points_into_the_buffers(version, monkeypatch):
    """And plans nothing ahead, as version 3 does elsewhere: one plan would serve all layers of a group."""
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda *args, **kwargs: version)
    config = EngineArgs(str(tiny_llava()), enforce_eager=True).create_engine_config()
    config.compilation_config.cudagraph_mode = DECODE_ONLY
    config.compilation_config.max_cudagraph_capture_size = MOST
    spec = BandSpec(
        block_size=16, num_kv_heads=2, head_size=16, dtype=torch.float32, band=0, first_layer=0
    )
    device = torch.device("cpu")
    with set_current_vllm_config(config):
        builder = flash_attn.FlashAttentionMetadataBuilder(spec, [], config, device)
    group = AttentionGroup(flash_attn.FlashAttentionBackend, NAMES, spec, 0)
    group.metadata_builders = [builder]
    buffers, tables = (
        DecodeBuffers(LayerBands(LAYERS, (0,)), (0,), MOST, device),
        tables_of((0,), 2, BLOCK),
    )
    query_start = torch.arange(3, dtype=torch.int32)
    metadata, slots = buffers.capture(tables, query_start, 512, NAMES, [[group]])
    for layer, name in enumerate(NAMES):
        made = metadata[name]
        assert made.seq_lens.data_ptr() == buffers.lengths[layer].data_ptr()
        assert made.slot_mapping.data_ptr() == slots[name].data_ptr()
        assert made.block_table is tables.tables[0]
        assert made.query_start_loc is query_start
        assert (made.max_query_len, made.max_seq_len) == (1, 512)
        assert made.scheduler_metadata is None


def test_blocks_that_a_backend_splits_are_refused():
    buffers = DecodeBuffers(LayerBands(1, (0,)), (0,), MOST, torch.device("cpu"))
    group = SimpleNamespace(layer_names=["layer 0"], kernel_block_size=16)
    with pytest.raises(ConfigurationError, match="PIECEWISE"):
        buffers.capture(tables_of((0,), 1, BLOCK), torch.tensor([0, 1]), 64, ["layer 0"], [[group]])


FULL, PIECEWISE, NONE = CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE, CUDAGraphMode.NONE
DECODE_ONLY, BOTH = CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.FULL_AND_PIECEWISE


@pytest.mark.parametrize(
    ("asked", "on_v2", "on_v1"),
    [
        (None, None, None),
        (NONE, NONE, NONE),
        (PIECEWISE, PIECEWISE, PIECEWISE),
        (FULL, DECODE_ONLY, NONE),
        (DECODE_ONLY, DECODE_ONLY, NONE),
        (BOTH, BOTH, PIECEWISE),
    ],
)
def test_full_graphs_are_for_decode_steps_on_runner_v2(asked, on_v2, on_v1):
    for backends, is_v2, used in (
        ({"FLASH_ATTN"}, True, on_v2),
        ({"TRITON_ATTN"}, True, on_v2),
        ({"FLASH_ATTN"}, False, on_v1),
        ({"FLASH_ATTN", "FLASHINFER"}, True, on_v1),
    ):
        config = SimpleNamespace(
            compilation_config=SimpleNamespace(cudagraph_mode=asked), use_v2_model_runner=is_v2
        )
        limit_graphs(config, backends)
        assert config.compilation_config.cudagraph_mode == used
