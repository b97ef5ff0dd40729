"""LoRA: an adapter gives the tokens of a model that has it in its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modes.cases import TOKENS, mixed
from tests.modes.checkpoints import write_adapter
from tests.modes.run import Job, Tokens, run

pytestmark = pytest.mark.modes

# One slot more than there are adapters: vLLM's CPU kernels read "no adapter" as the last slot.
LORA = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}


def test_an_adapter_is_as_merged_weights(checkpoint: Path, plain: Tokens, tmp_path: Path) -> None:
    """All requests with it, none, and every second one, reduced and not in one batch."""
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    write_adapter(checkpoint, adapter, merged)
    cases = mixed()
    even = [index % 2 == 0 for index in range(len(cases))]
    adapted = [[True] * len(cases), [False] * len(cases), even, [not with_it for with_it in even]]
    job = Job(checkpoint, [cases] * len(adapted), LORA, adapter=adapter, adapted=adapted)
    (in_weights,) = run(Job(merged, [cases]), TOKENS)
    assert all(a != b for a, b in zip(in_weights, plain, strict=True))
    for answers, with_it in zip(run(job, TOKENS), adapted, strict=True):
        assert answers == [
            (in_weights if adapter_used else plain)[index]
            for index, adapter_used in enumerate(with_it)
        ]
