"""No step waits for the device, and what is copied to it is pinned and little."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.config import CompilationMode
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.worker.utils import AttentionGroup

from tests.contract.band_groups import band_groups
from tests.contract.device import DEVICE, Watched
from tests.tiny import tiny_llava
from tests.vtr_vllm.atp.made import made
from tests.vtr_vllm.engine.operations import Operations
from tests.vtr_vllm.reduction.strategies import LAYERS, request_of
from vtr_vllm.atp.module import AtpModules, Shape
from vtr_vllm.engine.common.config import LayerBands
from vtr_vllm.engine.worker import adaptive_cuts, modules, scoring
from vtr_vllm.engine.worker import decoder as decoder_module
from vtr_vllm.engine.worker.adaptive_cuts import AdaptiveCounts
from vtr_vllm.engine.worker.attention import BandTables, Step, build_step
from vtr_vllm.engine.worker.compiled import LayerRunner
from vtr_vllm.engine.worker.decode_graphs import DecodeBuffers
from vtr_vllm.engine.worker.decoder import ReducibleDecoder
from vtr_vllm.engine.worker.layer_names import LayerNames
from vtr_vllm.engine.worker.lora import LoRARows
from vtr_vllm.engine.worker.prefix_keys import PrefixKeys
from vtr_vllm.engine.worker.timing import Timing
from vtr_vllm.engine.worker.tower import attach, detach
from vtr_vllm.engine.worker.trace import Traces
from vtr_vllm.reduction.batch import StepRequest, dropped_tokens, plan_batch

BLOCK, HEADS, KV_HEADS, HEAD_DIM = 16, 4, 2, 32
HIDDEN = HEADS * HEAD_DIM
BANDS = (0, 3)
NAMES = [f"model.layers.{layer}.self_attn.attn" for layer in range(LAYERS)]
RULES = [
    ("last", "instruction-norope-max", "previous"),
    ("saliency", "last-norope", "random"),
    ("cls", "previous", "instruction"),
]
CURVE = (1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.1)
COPIES_OF_A_STEP = 1
"""Query starts, sequence lengths and slots of all segments, together."""
COPIES_OF_A_CUT = 2
"""At most, a request: rows of embeddings or random numbers, and limits of floors."""


class Impl:
    scale = 0.5

    def forward(self, attention: Any, query: torch.Tensor, *rest: Any) -> torch.Tensor:
        return query


class Layer(nn.Module):
    """Gives its attention the shapes that a real one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.attn: Any = SimpleNamespace(
            impl=Impl(),
            _q_scale=torch.ones(1, device=DEVICE),
            kv_cache=torch.empty(64, KV_HEADS, BLOCK, 2 * HEAD_DIM, device=DEVICE),
        )
        self.rotary_emb = SimpleNamespace(
            rotary_dim=HEAD_DIM,
            is_neox_style=True,
            cos_sin_cache=torch.empty(4096, HEAD_DIM, device=DEVICE),
        )

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(positions) == len(hidden)
        query = hidden.view(-1, HEADS, HEAD_DIM)
        key = hidden[:, : KV_HEADS * HEAD_DIM].view(-1, KV_HEADS, HEAD_DIM)
        self.attn.impl.forward(self.attn, query, key, key)
        return hidden, hidden if residual is None else residual + hidden


class Rest(nn.Module):
    """The second half of a layer whose first is all of it."""

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(positions) == len(hidden) == len(residual)
        return hidden, residual


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> ReducibleDecoder:
    """Ours, around layers on the device."""
    monkeypatch.setattr(scoring, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(decoder_module, "chosen_by_first_rank", lambda rows: rows)
    monkeypatch.setattr(adaptive_cuts, "chosen_by_first_rank", lambda counts: counts)
    # The copy to the host, which a GPU makes on its own time.
    monkeypatch.setattr(Traces, "end_step", lambda traces: traces._step.clear())
    made = ReducibleDecoder.__new__(ReducibleDecoder)
    layers = [Layer() for _ in range(LAYERS)]
    made._decoder = SimpleNamespace(norm=lambda hidden, residual: (hidden + residual, residual))
    config: Any = SimpleNamespace(compilation_config=SimpleNamespace(mode=CompilationMode.NONE))
    made._run_layer = LayerRunner(config)
    made.layers, made.layer_names = list(layers), NAMES
    made._attention_blocks = list(layers)
    made._halves = [(layer, Rest()) for layer in layers]
    made.attentions = [layer.attn for layer in layers]
    made._names, made._lora_rows = LayerNames(NAMES), LoRARows(None)
    made.timing, made.traces = Timing(), Traces()
    made.adaptive_counts = AdaptiveCounts()
    keys = PrefixKeys.__new__(PrefixKeys)
    keys._shape, keys.block_size = (BLOCK, KV_HEADS, HEAD_DIM), BLOCK
    keys._fp8, keys.rounds = None, False
    keys._offsets = torch.empty(BLOCK * KV_HEADS * HEAD_DIM, dtype=torch.int64, device=DEVICE)
    made._prefix_keys = keys
    made._registers, made._modules = 0, None
    return made


@pytest.fixture(scope="module")
def groups() -> list[list[AttentionGroup]]:
    """Those of the bands, as vLLM makes them."""
    config = EngineArgs(str(tiny_llava()), enforce_eager=True).create_engine_config()
    return band_groups(
        config,
        TritonAttentionBackend,
        NAMES,
        BANDS,
        DEVICE,
        block_size=BLOCK,
        num_kv_heads=KV_HEADS,
        head_size=HEAD_DIM,
        dtype=torch.float32,
    )


def tables(count: int) -> BandTables:
    table = torch.empty(count, 64, dtype=torch.int32, device=DEVICE)
    return BandTables([table] * len(BANDS), [BLOCK] * len(BANDS))


def step_of(requests: list[StepRequest], groups: list[list[AttentionGroup]]) -> Step:
    plan = plan_batch(requests, LAYERS, BANDS)
    assert plan is not None
    return build_step(plan, tables(len(requests)), NAMES, groups)


@pytest.mark.parametrize("rules", RULES, ids="/".join)
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_a_step_with_cuts_waits_for_nothing(
    decoder: ReducibleDecoder,
    groups: list[list[AttentionGroup]],
    rules: tuple[str, ...],
    floor: float,
) -> None:
    curve = CURVE if rules[0] in ("last",) else (1.0, *CURVE[1:])
    reduced = request_of([range(6, 60), range(65, 90)], 100, curve, rules, floor)
    object.__setattr__(reduced, "trace", "a name")
    requests = [
        StepRequest(0, 100, reduced),
        StepRequest(6, 97, reduced),  # behind a cached prefix, and with generated tokens
        StepRequest(120, 1, reduced),
        StepRequest(7, 9, None),
    ]
    rows = sum(request.scheduled for request in requests)
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    with Watched() as watched, override_forward_context(context):
        step = step_of(requests, groups)
        hidden = decoder.forward(
            step,
            torch.empty(rows + 3, dtype=torch.int64, device=DEVICE),
            torch.empty(rows + 3, HIDDEN, device=DEVICE),
            torch.empty(rows + 3, device=DEVICE),
        )
    assert hidden.shape == (rows + 3, HIDDEN)
    cuts = sum(len(members) for members in step.plan.cuts.values())
    assert cuts == 2 * len(rules)
    numbers = 1 + (step.plan.image is not None)
    most = COPIES_OF_A_STEP + COPIES_OF_A_CUT * cuts + numbers
    assert COPIES_OF_A_STEP < len(watched.copies) <= most
    assert sum(watched.copies) < 64 * rows * len(step.plan.segments)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("rule", ["last@0.5", "atp"])
def test_a_step_with_adaptive_cuts_waits_once_a_cut(
    decoder: ReducibleDecoder,
    groups: list[list[AttentionGroup]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rule: str,
    count: int,
) -> None:
    """However many requests there are, and for nothing else."""
    monkeypatch.setattr(modules, "get_tensor_model_parallel_world_size", lambda: 1)
    trained = made(tmp_path, AtpModules((3, 5), Shape(state=KV_HEADS * HEAD_DIM)), grid=(6, 9))
    decoder._modules = modules.Modules(trained, DEVICE)
    waits: list[int] = []

    def found(counts: torch.Tensor) -> list[int]:
        assert counts.device == DEVICE
        waits.append(len(counts))
        return [20 - 5 * len(waits)] * len(counts)

    monkeypatch.setattr(adaptive_cuts, "wait_for", found)
    curve, rules = (1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.1), (rule, rule, "last")
    names = [f"r{number}" for number in range(count)]
    requests = [
        StepRequest(0, 100, request_of([range(6, 60)], 100, curve, rules), name) for name in names
    ]
    requests.append(StepRequest(7, 9, None, "other"))
    rows = sum(request.scheduled for request in requests)
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    with Watched(), override_forward_context(context):
        hidden = decoder.forward(
            step_of(requests, groups),
            torch.empty(rows, dtype=torch.int64, device=DEVICE),
            torch.empty(rows, HIDDEN, device=DEVICE),
            None,
        )
    assert hidden.shape == (rows, HIDDEN)
    assert waits == [count, count]
    assert decoder.adaptive_counts.take_untold() == dict.fromkeys(
        names, (54, 54, 54, 15, 15, 10, 5)
    )


def test_a_decode_step_waits_for_nothing(groups: list[list[AttentionGroup]]) -> None:
    reduced = request_of([range(6, 60)], 100, CURVE, RULES[0])
    requests = [StepRequest(120, 1, reduced), StepRequest(50, 1, None)]
    with Watched() as watched:
        step_of(requests, groups)
        assert len(watched.copies) == COPIES_OF_A_STEP


def test_the_buffers_of_full_graphs_are_filled_with_one_copy(
    groups: list[list[AttentionGroup]],
) -> None:
    reduced = request_of([range(6, 60)], 100, CURVE, RULES[0])
    requests = [StepRequest(120, 1, reduced), StepRequest(50, 1, None)]
    buffers = DecodeBuffers(LayerBands(LAYERS, BANDS), (0, 1), 8, DEVICE)
    with Watched() as watched, Operations(DEVICE) as operations:
        starts = torch.empty(5, dtype=torch.int32, device=DEVICE)
        buffers.fill(tables(4), starts[1:], dropped_tokens(requests, LAYERS))
        assert watched.copies == [LAYERS * 4 * np.dtype(np.int32).itemsize]
        assert operations.counts.total() <= 20 + len(BANDS), "each is a launch before every token"
        before = operations.counts.total()
        buffers.fill_whole(starts[1:], torch.empty(2, 4, dtype=torch.int64, device=DEVICE))
        assert operations.counts.total() - before <= 10
        buffers.capture(tables(4), starts, 1024, NAMES, groups)
        assert len(watched.copies) == 1


def test_the_tower_s_attention_rides_along_without_a_wait() -> None:
    images = [torch.empty(9, HIDDEN, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    with Watched() as watched:
        wide = attach(images, [torch.empty(2, 9, device=DEVICE)])
        embeddings, attention = detach(wide, HIDDEN)
        rows = torch.zeros(30, device=DEVICE)
        rows.masked_scatter_(torch.empty(30, dtype=torch.bool, device=DEVICE), attention)
    assert [len(image) for image in embeddings] == [9, 9]
    assert watched.copies == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor.nonzero(),
        lambda tensor: bool((tensor > 0).any()),
        lambda tensor: tensor[torch.tensor([1])],
        lambda tensor: tensor + torch.ones(3),
        lambda tensor: torch.tensor([1, 2]).to(DEVICE),
    ],
)
def test_a_wait_is_seen(wait: Any) -> None:
    with Watched(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        wait(torch.empty(3, device=DEVICE))
