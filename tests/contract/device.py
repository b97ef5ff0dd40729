"""A device that cannot be waited for: torch's meta tensors, which have shapes and no values.

Whatever asks for a value (``item``, ``tolist``, ``cpu``, a boolean index) is an error on them, as it is a
wait on a GPU. An operation that mixes host and device is an error here too, and copies to the device
are counted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vtr_vllm.upload

DEVICE = torch.device("meta")
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_PINNING = Path(vtr_vllm.upload.__file__)


class Watched(TorchDispatchMode):
    """Counts copies to the device while it is entered; raises AssertionError for an unpinned one."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[int] = []
        """Bytes of each."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        host = [tensor for tensor in given if tensor.device.type == "cpu" and tensor.ndim]
        there = [tensor for tensor in given if tensor.device == DEVICE]
        made = func(*args, **kwargs)
        if func in _COPIES:
            if host and DEVICE in {made.device, *(tensor.device for tensor in there)}:
                assert _within(_PINNING), f"a copy of {tuple(host[0].shape)} that is not pinned"
                self.copies.append(host[0].nbytes)
        else:
            assert not (host and there), f"{func} takes tensors of the host and of the device"
        return made


def _within(file: Path) -> bool:
    """Whether a function of ``file`` is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == str(file):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
