"""Lengths and slots of a decode step by layer, of all bands at once."""

from collections.abc import Sequence

import torch
from vllm.triton_utils import HAS_TRITON, tl, triton

from vtr_vllm.engine.worker.attention import BandTables
from vtr_vllm.upload import upload

_REQUESTS = 128
"""Of one layer that one program of the kernel writes."""


class DecodeSlots:
    """Writes them. ``bands`` has the first layer of each band, and its end."""

    def __init__(self, bands: Sequence[tuple[int, int]]) -> None:
        self._bands = bands
        self._pointers: tuple[tuple[int, ...], torch.Tensor] | None = None
        """Addresses of the bands' tables; [layers, 2] int64 on the device: that of each layer's
        table, and the entries of a row."""

    def fill(
        self,
        tables: BandTables,
        seq_lens: torch.Tensor,
        dropped: torch.Tensor,
        lengths: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Write ``lengths`` [layers, max] int32 and ``slots`` [layers, max] int64 of R requests.

        ``seq_lens`` [R] int32 counts every position of a request, ``dropped`` [layers, R] int32 what
        a layer does not store of them: the last one that is stored goes to ``slots``, -1 where
        nothing is. ``tables`` have R rows. One kernel, or where there is no Triton the same in torch.
        """
        if not HAS_TRITON or seq_lens.device.type == "meta":
            self._fill_in_torch(tables, seq_lens, dropped, lengths, slots)
            return
        count = len(seq_lens)
        _kernel[(len(lengths), triton.cdiv(count, _REQUESTS))](
            self._table_pointers(tables),
            seq_lens,
            dropped,
            dropped.stride(0),
            lengths,
            slots,
            slots.stride(0),
            count,
            tables.block_size,
            REQUESTS=_REQUESTS,
        )

    def _table_pointers(self, tables: BandTables) -> torch.Tensor:
        where = tuple(table.data_ptr() for table in tables.tables)
        # vLLM's tables live as long as its runner: sent once.
        if self._pointers is None or self._pointers[0] != where:
            by_layer = [
                (table.data_ptr(), table.stride(0))
                for (first, end), table in zip(self._bands, tables.tables, strict=True)
                for _ in range(first, end)
            ]
            sent = upload(torch.tensor(by_layer, dtype=torch.int64), tables.tables[0].device)
            self._pointers = where, sent
        return self._pointers[1]

    def _fill_in_torch(
        self,
        tables: BandTables,
        seq_lens: torch.Tensor,
        dropped: torch.Tensor,
        lengths: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        count, block_size = len(seq_lens), tables.block_size
        stored = lengths[:, :count]
        torch.sub(seq_lens, dropped, out=stored)
        place = stored.long().sub_(1).clamp_(min=0)
        number = place // block_size
        blocks = torch.empty_like(stored)
        for (first, end), table in zip(self._bands, tables.tables, strict=True):
            torch.gather(table, 1, number[first:end].T, out=blocks[first:end].T)
        written = place.remainder_(block_size).add_(blocks, alpha=block_size)
        slots[:, :count] = written.masked_fill_(stored <= 0, -1)


# Not specialised: a new number of requests compiles nothing.
@triton.jit(do_not_specialize=["dropped_stride", "count"])
def _kernel(  # type: ignore[no-untyped-def]
    tables,  # [layers, 2]
    seq_lens,  # [count]
    dropped,  # [layers, dropped_stride]
    dropped_stride,
    lengths,  # [layers, stride]
    slots,  # [layers, stride]
    stride,
    count,
    block_size,
    REQUESTS: tl.constexpr,  # noqa: N803  (Triton's way)
):
    layer = tl.program_id(0)
    request = tl.program_id(1) * REQUESTS + tl.arange(0, REQUESTS)
    here = request < count
    table = tl.cast(tl.load(tables + layer * 2), tl.pointer_type(tl.int32))
    row = tl.load(tables + layer * 2 + 1)
    seen = tl.load(seq_lens + request, mask=here, other=0)
    length = seen - tl.load(dropped + layer * dropped_stride + request, mask=here, other=0)
    tl.store(lengths + layer * stride + request, length, mask=here)
    last = length - 1
    place = tl.maximum(last, 0)
    block = tl.load(table + request * row + place // block_size, mask=here, other=0)
    slot = block.to(tl.int64) * block_size + place % block_size
    tl.store(slots + layer * stride + request, tl.where(last < 0, -1, slot), mask=here)
