from __future__ import annotations

import os

import pytest
import torch

from vtr_vllm.ranking.pairs import farthest_first


@pytest.mark.both_runners
@pytest.mark.skipif(
    os.environ.get("VTR_TEST_RUNNER") != "v2",
    reason="Triton decides at import whether it interprets: runs in `make test-v2`",
)
def test_the_kernel_takes_what_the_processor_takes() -> None:
    from vtr_vllm.ranking import pairs_kernel

    draw = torch.Generator().manual_seed(0)
    for images, tokens, most in [(1, 1, 1), (2, 17, 9), (3, 32, 32), (1, 100, 50)]:
        # Of few values, so that many are equal.
        apart = torch.randint(0, 9, (images, tokens, tokens), generator=draw).float()
        apart.diagonal(dim1=1, dim2=2).zero_()
        first = torch.randint(1, 4, (images, tokens), generator=draw).float()
        on_gpu = pairs_kernel.farthest_first(apart, first, most)
        for made, wanted in zip(on_gpu, farthest_first(apart, first, most), strict=True):
            assert torch.equal(made, wanted)
