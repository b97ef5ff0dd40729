"""LoRA adapters in a step with cuts: which adapter each row that is left belongs to.

vLLM's LoRA layers read one table, the adapter of every row of the step, and trust that their input
has those rows. After a cut it has fewer. All rows of a request have the same adapter, so the table
of a segment follows from its counts: it is made on the host, and nothing waits for the device but
vLLM's own look at the table, once a step that runs an adapter.
"""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from vllm.lora.layers import BaseLayerWithLoRA

from vtr_vllm.reduction.batch import BatchPlan


class LoRARows:
    """The table of one decoder's layers."""

    def __init__(self, wrapper: Any | None) -> None:
        self._wrapper = wrapper
        """vLLM's ``PunicaWrapperBase``, shared by all of the layers; None without LoRA."""
        self._whole: torch.Tensor | None = None
        """[N] int64 on the host: the slot of each row's adapter, -1 for none, before any cut;
        None outside of a step, and in one without adapters."""

    @classmethod
    def of(cls, layers: Iterable[nn.Module]) -> Self:
        """The table that ``layers`` read. vLLM wraps them after loading, if LoRA is enabled."""
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, BaseLayerWithLoRA):
                    return cls(module.punica_wrapper)
        return cls(None)

    def begin_step(self, plan: BatchPlan) -> None:
        """Note the adapters of a step, while all of its rows are there."""
        if self._wrapper is None or self._is_idle():
            return
        rows = plan.scheduled
        self._whole = self._wrapper.token_lora_indices.to("cpu", copy=True)
        self._of_request = self._whole[torch.from_numpy(np.cumsum(rows) - rows)]
        self.follow(plan)

    def follow(self, plan: BatchPlan) -> None:
        """Go on by ``plan``, which has other counts from the next cut on."""
        self._rows_of = {segment.first_layer: segment.query_len for segment in plan.segments}

    def cut(self, layer: int) -> None:
        """The cut before ``layer`` is done.

        Nothing is to do where it took no row, so that no segment begins there, or the last one: nothing
        runs then that would read the table.
        """
        left = self._rows_of.get(layer) if self._whole is not None else None
        if left is not None and left.any():
            self._write(self._of_request.repeat_interleave(torch.from_numpy(left)))

    def end_step(self) -> None:
        """Put the table back: vLLM writes it only when it changes from step to step."""
        if self._whole is not None:
            self._write(self._whole)
            self._whole = None

    def _is_idle(self) -> bool:
        """Whether no row of the step has an adapter; vLLM knows it on the host."""
        assert self._wrapper is not None
        meta = getattr(self._wrapper, "token_mapping_meta", None)
        return bool(self._wrapper.no_lora if meta is None else meta.no_lora_flag_cpu[0])

    def _write(self, slots: torch.Tensor) -> None:
        wrapper = self._wrapper
        assert wrapper is not None
        wrapper._token_lora_indices[: len(slots)].copy_(slots, non_blocking=True)
        wrapper.indices_len[0] = len(slots)
        meta = getattr(wrapper, "token_mapping_meta", None)
        if meta is None:
            wrapper._update_prefill_metadata(slots)
        else:
            meta.prepare_tensors(slots)
