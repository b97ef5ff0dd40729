"""Which GPUs each of several engines gets. Without an own share all would start on the first one."""

import os
from collections.abc import Mapping, Sequence

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search.answers import EngineOptions

__all__ = ["VISIBLE", "assign", "visible"]

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them: indices, UUIDs or MIG devices.

    Empty on a CPU. CUDA itself is not started here: torch asks the driver's library.
    """
    import torch

    count = torch.cuda.device_count()  # obeys the variable, up to its first invalid entry
    given = environ.get(VISIBLE)
    names = [str(index) for index in range(count)] if given is None else given.split(",")
    return [name.strip() for name in names[:count]]


def assign(devices: Sequence[str], options: EngineOptions, engines: int) -> list[str | None]:
    """The value of CUDA_VISIBLE_DEVICES of each engine; None leaves an engine's as it is.

    An engine takes as many GPUs as its tensor-parallel size. Raises ConfigurationError where there
    are too few for all of them: two engines on one GPU would each ask for most of its memory.
    """
    if not devices or engines == 1:
        return [None] * engines
    size = options.engine_args.get("tensor_parallel_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigurationError(
            f"--engine-args tensor_parallel_size is {size!r}; it must be a whole number from 1"
        )
    if engines * size > len(devices):
        each = "a GPU" if size == 1 else f"{size} GPUs"
        raise ConfigurationError(
            f"--engines {engines} wants {each} for each engine, {engines * size} in all, and"
            f" {len(devices)} can be seen ({','.join(devices)}); give --engines"
            f" {max(1, len(devices) // size)} or fewer, or more GPUs in {VISIBLE}"
        )
    return [",".join(devices[i * size : (i + 1) * size]) for i in range(engines)]
