"""Block tables of steps that are made by hand."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
import torch

from vtr_vllm.engine.worker.attention import BandTables


def tables_of(bands: Sized, count: int, block: int) -> BandTables:
    """Of every band other blocks for every request, in no order."""
    ids = np.random.default_rng(0).permutation(len(bands) * count * 64).astype(np.int32)
    tables = torch.from_numpy(ids.reshape(len(bands), count, 64))
    return BandTables([*tables], [block] * len(bands))
