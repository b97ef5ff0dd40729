"""Attention groups of bands, as vLLM makes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.v1.worker.utils import AttentionGroup

from vtr_vllm.engine.common.band_spec import BandSpec


def band_groups(
    config: Any,
    backend: Any,
    names: Sequence[str],
    starts: Sequence[int],
    device: torch.device,
    **spec: Any,
) -> list[list[AttentionGroup]]:
    """A KV-cache group for each band; ``spec`` is what all bands' specs have."""
    made = []
    for band, (first, end) in enumerate(pairwise((*starts, len(names)))):
        of_band = BandSpec(band=band, first_layer=first, **spec)
        group = AttentionGroup(backend, list(names[first:end]), of_band, band)
        with set_current_vllm_config(config):
            group.create_metadata_builders(config, device, of_band.block_size)
        made.append([group])
    return made
