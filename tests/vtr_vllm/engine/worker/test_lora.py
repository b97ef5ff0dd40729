"""The table of adapters that vLLM's LoRA layers read, from cut to cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from vllm.lora.layers import BaseLayerWithLoRA, LoRAMapping
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from tests.vtr_vllm.reduction.strategies import (
    LAYERS,
    band_lists,
    drawn_order,
    request_of,
    steps,
)
from vtr_vllm.engine.worker.lora import LoRARows
from vtr_vllm.reduction.batch import StepRequest, plan_batch

ADAPTERS = 3
ROWS = 256


class OfCPU:
    """vLLM's table for requests with these adapters, 0 for none."""

    def __init__(self, adapters: list[int], rows: list[int]) -> None:
        self.wrapper = PunicaWrapperCPU(ROWS, 64, "cpu")
        of_rows = tuple(np.repeat(adapters, rows).tolist())
        mapping = LoRAMapping(of_rows, tuple(adapters), is_prefill=True)
        self.wrapper.update_metadata(mapping, [*range(1, ADAPTERS + 1)], ADAPTERS + 1, 100)

    def seen(self, rows: int) -> list[int]:
        """The slot of each row, as the kernels unfold the table."""
        if self.wrapper.no_lora:
            return [-1] * rows
        _, lengths, slots, *_ = self.wrapper.prefill_metadata
        return slots.repeat_interleave(lengths).tolist()


class OfGPU(OfCPU):
    """The same with the metadata of the GPU's kernels beside it, on the host."""

    def __init__(self, adapters: list[int], rows: list[int]) -> None:
        super().__init__(adapters, rows)
        self.wrapper.token_mapping_meta = LoRAKernelMeta.make(ADAPTERS, ROWS, "cpu")
        self.wrapper.token_mapping_meta.prepare_tensors(self.wrapper.token_lora_indices)

    def seen(self, rows: int) -> list[int]:
        meta = self.wrapper.token_mapping_meta
        if meta.no_lora_flag_cpu[0]:
            return [-1] * rows
        slots = meta.token_lora_mapping[:rows].tolist()
        order = meta.token_indices_sorted_by_lora_ids[:rows].tolist()
        assert order == sorted(range(rows), key=lambda row: slots[row])
        return slots


@pytest.mark.parametrize("kind", [OfCPU, OfGPU])
@given(data=st.data(), requests=steps, band_starts=band_lists, seed=st.integers(0, 99))
def test_each_row_that_is_left_keeps_its_adapter(kind, data, requests, band_starts, seed) -> None:
    plan = plan_batch(requests, LAYERS, band_starts)
    if plan is None or not plan.cuts:
        return
    count = len(requests)
    adapters = data.draw(st.lists(st.integers(0, ADAPTERS), min_size=count, max_size=count))
    kept = [drawn_order(request, seed) for request in requests]
    table = kind(adapters, [request.scheduled for request in requests])
    rows = LoRARows(table.wrapper)
    whole = table.seen(plan.num_rows)
    for _ in range(2):  # vLLM writes the table once for two steps that are alike
        rows.begin_step(plan)
        for layer in range(LAYERS):
            if layer in plan.cuts:
                rows.cut(layer)
            left = [len(one.rows(layer)) for one in kept]
            if any(left):
                assert table.seen(sum(left)) == np.repeat(np.array(adapters) - 1, left).tolist()
        rows.end_step()
        assert table.seen(plan.num_rows) == whole


@pytest.mark.parametrize("kind", [OfCPU, OfGPU])
def test_a_step_of_which_no_row_is_left_has_its_table_again(kind) -> None:
    """An image between two others, of which deep layers keep nothing, alone in a step."""
    request = request_of([range(4)], 9, [0.5, 0.0], ["grid", "grid"], local=True)
    plan = plan_batch([StepRequest(0, 4, request)], 2, [0, 1])
    table = kind([1], [4])
    rows = LoRARows(table.wrapper)
    rows.begin_step(plan)
    rows.cut(0)
    assert table.seen(2) == [0, 0]
    rows.cut(1)
    rows.end_step()
    assert table.seen(4) == [0] * 4


@pytest.mark.parametrize("kind", [OfCPU, OfGPU])
def test_a_cut_that_takes_nothing_changes_no_table(kind) -> None:
    """An adaptive one, whose count is that of what there was: no segment begins behind it."""
    request = request_of([range(4)], 9, [1, 1, 0.9999, 0.9999], ["last@0.9"])
    plan = plan_batch([StepRequest(0, 9, request)], 4, [0])
    assert list(plan.cuts) == [2]
    assert [segment.first_layer for segment in plan.segments] == [0]
    table = kind([1], [9])
    rows = LoRARows(table.wrapper)
    rows.begin_step(plan)
    rows.cut(2)
    assert table.seen(9) == [0] * 9
    rows.end_step()
    assert table.seen(9) == [0] * 9


class Wrapped(BaseLayerWithLoRA):
    """A layer as vLLM exchanges it for a linear one."""


def test_the_table_is_found_in_wrapped_layers_only() -> None:
    wrapped = Wrapped()
    wrapped.punica_wrapper = PunicaWrapperCPU(ROWS, 64, "cpu")
    assert LoRARows.of([nn.Sequential(nn.Linear(2, 2)), nn.ReLU()])._wrapper is None
    found = LoRARows.of([nn.ReLU(), nn.Sequential(nn.Linear(2, 2), wrapped)])
    assert found._wrapper is wrapped.punica_wrapper


def test_a_step_without_adapters_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrapper in (None, OfCPU([0, 0], [3, 4]).wrapper, OfGPU([0, 0], [3, 4]).wrapper):
        rows = LoRARows(wrapper)
        monkeypatch.setattr(rows, "_write", pytest.fail)
        rows.begin_step(None)
        rows.cut(3)
        rows.end_step()
