"""Counts what a device would be given to do: each operation that runs a kernel, and each copy to it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach"}
_FREE |= {"lift_fresh", "alias", "_unsafe_view", "_local_scalar_dense"}


class Operations(TorchDispatchMode):
    """Counts operations by name while it is entered.

    Views and allocations run nothing and do not count. ``device``: count what touches tensors of this
    one, None for all. What an operator of vLLM does inside of itself is one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self._device = device
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE and self._is_there((args, kwargs, made)):
            self.counts[name] += 1
        return made

    def _is_there(self, given: Any) -> bool:
        tensors = [item for item in tree_leaves(given) if isinstance(item, torch.Tensor)]
        return self._device is None or any(tensor.device == self._device for tensor in tensors)
