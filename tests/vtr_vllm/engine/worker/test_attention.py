"""Slots and metadata of a planned step, by vLLM's own builders, against explicit sets of kept tokens."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from vllm.config import CUDAGraphMode, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.worker.utils import AttentionGroup

from tests.tiny import tiny_llava
from tests.vtr_vllm.engine.worker.tables import tables_of
from tests.vtr_vllm.reduction.strategies import (
    LAYERS,
    band_lists,
    drawn_order,
    request_of,
    step_requests,
    steps,
)
from vtr_vllm.engine.common.band_spec import BandSpec
from vtr_vllm.engine.worker.attention import (
    BACKENDS,
    build_step,
    check_backends,
    padded,
)
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.reduction.batch import StepRequest, plan_batch

BLOCK = 16
NAMES = [f"layer {i}" for i in range(LAYERS)]
SCRATCH = {"softmax_segm_output", "softmax_segm_max", "softmax_segm_expsum"}
"""What a kernel of Triton's writes and reads while it runs."""
CASES = {
    "flash-2": (FlashAttentionBackend, 2),
    "flash-3": (FlashAttentionBackend, 3),
    "flash-4": (FlashAttentionBackend, 4),
    "triton": (TritonAttentionBackend, None),
    "cpu": (CPUAttentionBackend, None),
}


def plan_of(*, batch_size, cache_seqlens, cu_seqlens_q, **how):
    """In the place of FlashAttention 3's kernel, which needs a GPU: a plan that tells what it is of."""
    plan = torch.zeros(1 + 4 * -(-batch_size // 4) * 4, dtype=torch.int32)
    known = torch.cat([cache_seqlens, cu_seqlens_q])
    plan[: len(known)] = known
    return plan


@pytest.fixture(scope="module")
def config():
    """Full CUDA graphs are on, so that plans go through the builder's own buffer."""
    made = EngineArgs(str(tiny_llava()), enforce_eager=True).create_engine_config()
    made.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
    made.compilation_config.cudagraph_capture_sizes = [8]
    made.compilation_config.max_cudagraph_capture_size = 8
    return made


@pytest.fixture(params=CASES)
def backend(request, monkeypatch):
    backend, version = CASES[request.param]
    if version is not None:
        monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda *a, **k: version)
        monkeypatch.setattr(flash_attn, "get_scheduler_metadata", plan_of, raising=False)
    return backend


def group_of(backend, config, names, band=0, first_layer=0) -> AttentionGroup:
    """A band's group with a builder of its own, as vLLM makes it."""
    spec = BandSpec(
        block_size=BLOCK,
        num_kv_heads=2,
        head_size=32,
        dtype=torch.float32,
        band=band,
        first_layer=first_layer,
    )
    with set_current_vllm_config(config):
        group = AttentionGroup(backend, list(names), spec, band)
        builder = backend.get_builder_cls()(spec, [], config, torch.device("cpu"))
    group.metadata_builders = [builder]
    return group


class Watched:
    """A group that keeps what each metadata held when it was made."""

    def __init__(self, group: AttentionGroup) -> None:
        self._group = group
        self.layer_names = group.layer_names
        self.made: list[tuple[object, dict[str, object]]] = []

    def build_metadata(self, common, **how):
        made = self._group.build_metadata(common, **how)
        self.made.append((made, {f.name: copied(getattr(made, f.name)) for f in fields(made)}))
        return made


def copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def check(requests, bands, backend, config):
    plan = plan_batch(requests, LAYERS, bands)
    if plan is None:
        return
    tables = tables_of(bands, len(requests), BLOCK)
    groups = [
        Watched(group_of(backend, config, NAMES[first:end], band, first))
        for band, (first, end) in enumerate(pairwise((*bands, LAYERS)))
    ]
    step = build_step(plan, tables, NAMES, [groups])
    assert sum(len(group.made) for group in groups) == len(plan.segments)
    for made, then in (pair for group in groups for pair in group.made):
        for name, value in then.items():
            now = getattr(made, name)
            if name in SCRATCH:
                continue
            if isinstance(value, torch.Tensor):
                assert torch.equal(now, value), name
            else:
                assert now == value, name
    kept = [drawn_order(request, 0) for request in requests]
    for layer, name in enumerate(NAMES):
        made = step.metadata[name]
        rows = [len(one.rows(layer)) for one in kept]
        band = int(np.searchsorted(bands, layer, side="right")) - 1
        assert made.query_start_loc.tolist() == [0, *np.cumsum(rows)]
        assert made.seq_lens.tolist() == [len(one.positions(layer)) for one in kept]
        assert made.num_actual_tokens == sum(rows)
        assert made.max_query_len == max(rows)
        assert made.block_table is tables.tables[band]
        slots = [
            int(tables.tables[band][i, place // BLOCK]) * BLOCK + place % BLOCK
            for i, one in enumerate(kept)
            for place in one.storage(layer).tolist()
        ]
        assert step.slots[name].tolist() == made.slot_mapping.tolist() == slots


CURVE = [1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
LONG = request_of([range(3, 90)], 100, CURVE, ["last"] * 5)
SHORT = request_of([range(20), range(25, 40)], 45, CURVE, ["last"] * 5)
MIXED = [
    StepRequest(0, 100, LONG),
    StepRequest(60, 1, SHORT),
    StepRequest(0, 45, SHORT),
    StepRequest(7, 9, None),
]
"""Prefills that are cut inside a band, beside decoding and unreduced requests."""


@pytest.mark.parametrize("bands", [(0,), (0, 3), tuple(range(LAYERS))])
def test_the_metadata_of_each_layer_is_of_its_own_rows_once_all_are_built(backend, bands, config):
    check(MIXED, bands, backend, config)


@given(steps, step_requests(), band_lists)
@settings(deadline=None, max_examples=25)
def test_any_step(config, requests, one_more, bands):
    check([*requests, one_more], bands, TritonAttentionBackend, config)


def test_no_request_without_rows_is_told_to_have_one(config):
    """FlashAttention 2 takes a longest query of one row for a batch of exactly one row each."""
    keep = [1.0] * 3 + [0.0] * (LAYERS - 3)
    frames = request_of([range(4, 8), range(8, 12)], 30, keep, ["diverse"], local=True)
    requests = [StepRequest(4, 8, frames), StepRequest(60, 1, None)]
    plan = plan_batch(requests, LAYERS, (0,))
    made = []

    class Group:
        layer_names = NAMES

        @staticmethod
        def build_metadata(common, **how):
            starts = common.query_start_loc_cpu.diff().tolist()
            made.append((starts, common.max_query_len))

    build_step(plan, tables_of((0,), len(requests), BLOCK), NAMES, [[Group]])
    assert made == [([8, 1], 8), ([0, 1], 2)]


def test_flash_attention_3_keeps_one_plan_a_builder(config, monkeypatch):
    """Why nothing is planned ahead: the plan of a segment would be gone once the next is built."""
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda *a, **k: 3)
    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", plan_of, raising=False)
    group = group_of(FlashAttentionBackend, config, NAMES)
    segments = []

    class Planned:
        layer_names = NAMES

        @staticmethod
        def build_metadata(common, **how):
            assert how == {"fast_build": True}
            made = group.build_metadata(common)
            segments.append((common, made.scheduler_metadata.clone(), made.scheduler_metadata))
            return made

    build_step(
        plan_batch(MIXED, LAYERS, (0,)), tables_of((0,), len(MIXED), BLOCK), NAMES, [[Planned]]
    )
    assert len(segments) > 3
    assert len({plan.data_ptr() for _, _, plan in segments}) == 1
    assert not torch.equal(segments[0][1], segments[0][2])


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_that_are_let_through(name):
    check_backends({name})
    assert AttentionBackendEnum[name].get_class().get_name() == name


@pytest.mark.parametrize("name", ["FLASHINFER", "FLEX_ATTENTION", "TRITON_FLASH_ATTN", "CUSTOM"])
def test_others_are_refused_by_name(name):
    with pytest.raises(ConfigurationError) as caught:
        check_backends({name, "FLASH_ATTN"})
    said = str(caught.value)
    assert f"attention backend {name} is not known" in said
    assert all(allowed in said for allowed in BACKENDS)
    assert "--attention-backend FLASH_ATTN or TRITON_ATTN" in said


def test_padding_has_no_slot():
    slots = torch.tensor([5, 6])
    longer = padded({"a": slots, "b": slots, "c": torch.tensor([1, 2, 3])}, 3)
    assert [longer[name].tolist() for name in "abc"] == [[5, 6, -1], [5, 6, -1], [1, 2, 3]]
    assert longer["a"] is longer["b"]
