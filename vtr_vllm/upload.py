"""Host arrays to the device, without waiting for it; and the one way back, which waits."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

_ALIGNED = 16
"""Numbers of 4 bytes. Kernels are compiled once for pointers to multiples of 16 bytes, and once for others."""
_GAPS = [np.zeros(size, dtype=np.int32) for size in range(_ALIGNED)]


def upload(values: npt.NDArray[np.generic] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``, as they are now.

    A GPU copies out of pinned memory by itself; out of any other, the host may have to wait for what
    the GPU has still to do. The pinned copy is torch's, which keeps it until it has been read.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def upload_together(
    arrays: Sequence[npt.NDArray[np.integer]], device: torch.device
) -> list[torch.Tensor]:
    """``arrays`` on ``device`` in one copy, each in its shape, int32 and aligned."""
    pieces: list[npt.NDArray[np.integer]] = []
    for array in arrays:
        pieces += [array.ravel(), _GAPS[-array.size % _ALIGNED]]
    whole = np.concatenate([*pieces, _GAPS[0]], dtype=np.int32)
    parts = upload(whole, device).split([len(piece) for piece in pieces])[::2]
    return [
        part if array.ndim == 1 else part.view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]


def wait_for(values: torch.Tensor) -> list[int]:
    """Whole numbers [n] from the device, once everything is done that it has been given."""
    if not values.is_cuda:
        return [int(value) for value in values.tolist()]
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # spinning would hold the driver's lock
    arrived.record()
    arrived.synchronize()
    return [int(value) for value in host.tolist()]


def padded_size(size: int) -> int:
    """The least size from ``size`` on that keeps what stands behind aligned."""
    return size + -size % _ALIGNED
