"""Host arrays to the device, without waiting for it."""

import numpy as np
import numpy.typing as npt
import torch


def upload(values: npt.NDArray[np.generic] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``, as they are now.

    A GPU copies out of pinned memory by itself; out of any other, the host may have to wait for what
    the GPU has still to do. The pinned copy is torch's, which keeps it until it has been read.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
