"""The open decoder pass tells what it saw."""

from __future__ import annotations

import torch

from vtr_vllm.demo.model import LAYERS, WIDTH, build_model, decoder_pass


@torch.no_grad()
def test_a_trace_has_where_each_reader_looks() -> None:
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    readers = torch.tensor([[4, 1], [2, 3]])
    _, trace = decoder_pass(build_model(0), x, torch.arange(5).expand(2, -1), mask, readers)
    assert len(trace.inputs) == len(trace.attention) == LAYERS
    for attention in trace.attention:
        assert torch.allclose(attention.sum(-1), torch.ones(()))
        assert not attention[0, :, 1, 2:].any()
