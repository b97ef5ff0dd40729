"""The kernel that writes lengths and slots of a decode step, in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from vtr_vllm.engine.worker import decode_slots
from vtr_vllm.engine.worker.attention import BandTables
from vtr_vllm.engine.worker.decode_slots import DecodeSlots

BANDS, MOST, BLOCK = [(0, 2), (2, 3), (3, 7)], 300, 16


@pytest.mark.both_runners
@pytest.mark.skipif(
    os.environ.get("VTR_TEST_RUNNER") != "v2",
    reason="Triton decides at import whether it interprets: runs in `make test-v2`",
)
def test_the_kernel_writes_what_torch_does() -> None:
    assert decode_slots.HAS_TRITON
    draw = torch.Generator().manual_seed(0)
    filler = DecodeSlots(BANDS)
    for count in (1, 2, 3, 130, 300):
        # Of every band tables of another width, as vLLM's: a part of the rows of what it holds.
        held = [
            torch.randint(0, 1 << 20, (MOST, 9 + band), generator=draw, dtype=torch.int32)
            for band in range(len(BANDS))
        ]
        tables = BandTables([table[:count] for table in held], [BLOCK] * len(BANDS))
        seq_lens = torch.randint(0, 140, (count,), generator=draw, dtype=torch.int32)
        dropped = (torch.rand(7, count, generator=draw) * (seq_lens + 1)).int()
        made = []
        for fill in (filler.fill, filler._fill_in_torch):
            lengths = torch.full((7, MOST), 77, dtype=torch.int32)
            slots = torch.full((7, MOST), 77, dtype=torch.int64)
            fill(tables, seq_lens, dropped, lengths, slots)
            made.append((lengths, slots))
        assert torch.equal(made[0][0], made[1][0])
        assert torch.equal(made[0][1], made[1][1])
        assert (made[0][1][:, count:] == 77).all()
        assert (made[0][1][:, :count] == -1).any() or count < 130
        strided = torch.zeros(7, MOST, dtype=torch.int32)[:, :count]
        filler.fill(tables, seq_lens, strided, lengths, slots)
        assert torch.equal(lengths[:, :count], seq_lens.expand(7, count))
