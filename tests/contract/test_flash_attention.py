"""What FlashAttention 3 is called with in a planned step, through vLLM's own builder and layer."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends import flash_attn

from tests.contract.band_groups import band_groups
from tests.contract.flash_attention import attend, signature, write
from tests.tiny import tiny_llava
from tests.vtr_vllm.reduction.strategies import LAYERS, drawn_order, request_of
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.worker.attention import BandTables, build_step
from vtr_vllm.engine.worker.decode_graphs import DecodeBuffers
from vtr_vllm.reduction.batch import StepRequest, dropped_tokens, plan_batch

BLOCK, HEADS, KV_HEADS, HEAD_DIM, MOST = 16, 4, 2, 32, 8
BANDS = (0, 3)
NAMES = [f"layer {layer}" for layer in range(LAYERS)]
CURVE = (1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
CPU = torch.device("cpu")


class Layers:
    """KV caches and layers of a model whose attention is FlashAttention 3."""

    def __init__(self, config: Any) -> None:
        self.groups = band_groups(
            config,
            flash_attn.FlashAttentionBackend,
            NAMES,
            BANDS,
            CPU,
            block_size=BLOCK,
            num_kv_heads=KV_HEADS,
            head_size=HEAD_DIM,
            dtype=torch.float16,
        )
        with set_current_vllm_config(config):
            self.attend = flash_attn.FlashAttentionImpl(
                HEADS, HEAD_DIM, 0.2, KV_HEADS, None, None, "auto"
            )
        scale = torch.ones(1)
        self.layer: Any = SimpleNamespace(_q_scale=scale, _k_scale=scale, _v_scale=scale)
        self.caches = [
            torch.zeros(256, KV_HEADS, BLOCK, 2 * HEAD_DIM, dtype=torch.float16) for _ in NAMES
        ]

    def run(self, layer: int, rows: torch.Tensor, metadata: Any, slots: torch.Tensor) -> Any:
        """[rows, HEADS, HEAD_DIM]: ``layer`` over ``rows`` [rows, HEADS + 2 * KV_HEADS, HEAD_DIM]."""
        query, key, value = rows.split([HEADS, KV_HEADS, KV_HEADS], 1)
        cache = self.caches[layer]
        self.attend.do_kv_cache_update(self.layer, key, value, cache, slots)
        out = torch.empty(len(rows), HEADS, HEAD_DIM, dtype=torch.float16)
        return self.attend.forward(
            self.layer, query.contiguous(), key, value, cache, metadata, output=out
        )


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Layers:
    config = EngineArgs(str(tiny_llava()), enforce_eager=True).create_engine_config()
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
    config.compilation_config.cudagraph_capture_sizes = [MOST]
    config.compilation_config.max_cudagraph_capture_size = MOST
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda *args, **kwargs: 3)
    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", attend, raising=False)
    monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", write, raising=False)
    monkeypatch.setattr(flash_attn, "_FA4_DENSE_ATTENTION_KERNEL", lambda **given: attend(**given))
    return Layers(config)


def rows_of(layer: int, request: int, positions: np.ndarray) -> torch.Tensor:
    """Query, key and value of some positions: numbers of their own, the same in every step."""
    made = [
        torch.randn(
            HEADS + 2 * KV_HEADS,
            HEAD_DIM,
            generator=torch.Generator().manual_seed((layer * 50 + request) * 1000 + int(position)),
        )
        for position in positions
    ]
    return torch.stack(made).half()


def expected(layer: int, request: int, seen: np.ndarray, asking: int) -> torch.Tensor:
    """[asking, HEADS, HEAD_DIM]: causal attention of the last ``asking`` of the positions ``seen``."""
    query, key, value = rows_of(layer, request, seen).float().split([HEADS, KV_HEADS, KV_HEADS], 1)
    key, value = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query[-asking:], key) * 0.2
    late = torch.ones(asking, len(seen), dtype=torch.bool).triu(len(seen) - asking + 1)
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(late, -torch.inf).softmax(-1), value)


def tables_of(count: int) -> BandTables:
    ids = 1 + np.random.default_rng(0).permutation(len(BANDS) * count * 16).astype(np.int32)
    return BandTables([*torch.from_numpy(ids.reshape(len(BANDS), count, 16))], [BLOCK] * len(BANDS))


REDUCED = [
    request_of([range(3, 90)], 100, CURVE, ["last"] * 5),
    request_of([range(20), range(25, 40)], 45, CURVE, ["last"] * 5),
]
PREFILL = [StepRequest(0, 100, REDUCED[0]), StepRequest(0, 45, REDUCED[1]), StepRequest(0, 9, None)]


def prefilled(layers: Layers, tables: BandTables) -> None:
    """Run a step with cuts, and compare each layer's attention."""
    plan = plan_batch(PREFILL, LAYERS, BANDS)
    assert plan is not None
    step = build_step(plan, tables, NAMES, layers.groups)
    for layer, name in enumerate(NAMES):
        kept = [drawn_order(request, 0).rows(layer) for request in PREFILL]
        rows = torch.cat([rows_of(layer, i, positions) for i, positions in enumerate(kept)])
        got = layers.run(layer, rows, step.metadata[name], step.slots[name])
        want = [expected(layer, i, seen, len(seen)) for i, seen in enumerate(kept)]
        torch.testing.assert_close(got.float(), torch.cat(want), rtol=1e-2, atol=1e-2)


def check_decode(layers: Layers, after: int, metadata: Any, slots: Any, padding: int) -> None:
    """Compare a step of one token a request, ``after`` the prompt's end."""
    for layer, name in enumerate(NAMES):
        seen = [
            drawn_order(StepRequest(r.scheduled + after, 1, r.reduced), 0).positions(layer)
            for r in PREFILL
        ]
        rows = [rows_of(layer, i, positions[-1:]) for i, positions in enumerate(seen)]
        rows += [rows[0]] * padding
        got = layers.run(layer, torch.cat(rows), metadata[name], slots[name])[: len(PREFILL)]
        want = torch.cat([expected(layer, i, positions, 1) for i, positions in enumerate(seen)])
        torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


def test_steps_with_cuts_and_behind_them(layers: Layers) -> None:
    tables = tables_of(len(PREFILL))
    prefilled(layers, tables)
    for after in range(3):
        requests = [StepRequest(r.scheduled + after, 1, r.reduced) for r in PREFILL]
        plan = plan_batch(requests, LAYERS, BANDS)
        assert plan is not None
        step = build_step(plan, tables, NAMES, layers.groups)
        check_decode(layers, after, step.metadata, step.slots, 0)


def test_small_steps_that_no_graph_runs_are_split_as_the_kernel_likes(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits of a graph cost memory for each, and one kernel more that adds them up."""
    small = request_of([range(4)], 7, CURVE, ["last"] * 5)
    plan = plan_batch([StepRequest(0, 7, small)], LAYERS, BANDS)
    assert plan is not None
    assert plan.num_rows <= MOST

    def splits() -> set[int]:
        step = build_step(plan, tables_of(1), NAMES, layers.groups)
        return {metadata.max_num_splits for metadata in step.metadata.values()}

    assert splits() == {0}
    monkeypatch.setattr("vtr_vllm.engine.worker.attention._uncaptured", lambda metadata: metadata)
    assert max(splits()) > 1, "vLLM splits them no longer: drop _uncaptured"


def test_replays_of_a_captured_step(layers: Layers) -> None:
    """With two requests of padding, whose table rows are the null block's."""
    padding = 2
    tables = tables_of(len(PREFILL))
    prefilled(layers, tables)
    count = len(PREFILL) + padding
    longer = [torch.cat([table, table.new_zeros(padding, 16)]) for table in tables.tables]
    tables = BandTables(longer, tables.block_sizes)
    buffers = DecodeBuffers(LayerBands(LAYERS, BANDS), (0, 1), MOST, CPU)
    starts = torch.arange(count + 1, dtype=torch.int32)
    metadata, slots = buffers.capture(tables, starts, 16 * BLOCK, NAMES, layers.groups)
    for after in range(3):
        lengths = [r.scheduled + after + 1 for r in PREFILL] + [0] * padding
        requests = [StepRequest(r.scheduled + after, 1, r.reduced) for r in PREFILL]
        dropped = dropped_tokens(requests, LAYERS)
        buffers.fill(tables, torch.tensor(lengths, dtype=torch.int32), dropped)
        check_decode(layers, after, metadata, slots, padding)


def test_the_planner_is_called_as_it_wants_to_be(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps as in stock vLLM, where the builder plans: with the real signature."""
    calls = []
    asked = signature("get_scheduler_metadata")

    def planned(**given: Any) -> torch.Tensor:
        calls.append(asked.bind(**given).arguments)
        return torch.zeros(1 + 4 * 4, dtype=torch.int32)

    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", planned, raising=False)
    plan = plan_batch([StepRequest(0, 100, REDUCED[0])], LAYERS, BANDS)
    assert plan is not None
    group = layers.groups[0][0]
    fast = build_step(plan, tables_of(1), NAMES, layers.groups)
    assert calls == []
    made: Any = fast.metadata[NAMES[0]]
    common = SimpleNamespace(
        num_reqs=1,
        num_actual_tokens=made.num_actual_tokens,
        max_query_len=made.max_query_len,
        max_seq_len=made.max_seq_len,
        query_start_loc=made.query_start_loc,
        seq_lens=made.seq_lens,
        block_table_tensor=made.block_table,
        slot_mapping=made.slot_mapping,
        causal=True,
        mm_req_doc_ranges=None,
        rswa_prefix_lens=None,
    )
    group.get_metadata_builder(0).build(0, common)
    assert len(calls) == 1
    assert calls[0]["page_size"] == BLOCK


def test_flashinfer_still_keeps_one_plan_a_builder() -> None:
    """Why it is refused: its wrappers, which are planned for one step's rows, belong to the builder."""
    path = Path(flash_attn.__file__).with_name("flashinfer.py")
    (builder,) = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "FlashInferMetadataBuilder"
    ]
    methods = {node.name: node for node in builder.body if isinstance(node, ast.FunctionDef)}
    arguments = [argument.arg for argument in methods["build"].args.args]
    assert arguments == ["self", "common_prefix_len", "common_attn_metadata", "fast_build"]
    build = ast.unparse(methods["build"])
    assert "self._get_prefill_wrapper(" in build
    assert "self._get_decode_wrapper(" in build
    assert "return self._prefill_wrapper" in ast.unparse(methods["_get_prefill_wrapper"])
