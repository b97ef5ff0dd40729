"""Quantised weights and KV caches: unreduced as in stock vLLM, reduced as close as the rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.modes.cases import HALF, QUARTER, TOKENS, full, mixed
from tests.modes.checkpoints import write_int4, write_int8
from tests.modes.run import Job, run
from tests.vtr_vllm.engine.support import BLOCK, Case, picture, words

pytestmark = pytest.mark.modes

AVX512 = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(), reason="vLLM's kernels for it on a CPU: AVX-512"
)
ALIKE = 0.75
"""Least share of first tokens that a rounding leaves as they are."""


def blind() -> list[Case]:
    """Reduced requests whose kept tokens no rounding changes."""
    return [
        Case(f"{words(seed, 20)}<image>{words(seed + 1, 9)}", (picture(seed),), keep, ("random",))
        for seed, keep in enumerate([HALF, (0.2,) * 8, (1.0,) * 4 + (0.1,) * 4] * 4)
    ]


def check_weights(
    write: Callable[[Path, Path, Path], None], checkpoint: Path, folder: Path, dtype: str
) -> None:
    """Quantised against stock vLLM where it can, and against the same weights unpacked."""
    quantised, unpacked = folder / "quantised", folder / "unpacked"
    write(checkpoint, quantised, unpacked)
    engine = {"dtype": dtype}
    answers, reduced = run(Job(quantised, [mixed(), blind()], engine), TOKENS)
    (stock,) = run(Job(quantised, [full()], engine, stock=True), TOKENS)
    assert answers[-len(stock) :] == stock
    (plain,) = run(Job(unpacked, [blind()], engine), TOKENS)
    first = {tokens[0] for tokens in plain}
    assert len(first) > len(plain) / 2, "answers differ"
    same = [a[0] == b[0] for a, b in zip(reduced, plain, strict=True)]
    assert sum(same) >= ALIKE * len(same), same


@AVX512  # without, int8 sums saturate: stock vLLM's answers change as well
def test_int8(checkpoint: Path, tmp_path: Path) -> None:
    check_weights(write_int8, checkpoint, tmp_path, "float32")


@AVX512
def test_int4(checkpoint: Path, tmp_path: Path) -> None:
    check_weights(write_int4, checkpoint, tmp_path, "bfloat16")


@AVX512
@pytest.mark.parametrize("kind", ["fp8", "fp8_e5m2"])
def test_fp8_kv_cache(kind: str, checkpoint: Path) -> None:
    """Cold and warm: what a step ranks and what it reads back are the same rounded keys."""
    again = [
        Case(f"{words(i, 3 * BLOCK + 5)}<image>{words(9, 40)}", (picture(i),), QUARTER, (rule,) * 3)
        for i, rule in enumerate(("last", "last-norope", "instruction-max"))
    ]
    # A prefix of its own for each, so that the first time is cold and the second is warm.
    rounds = [mixed(), *([case] for case in again for _ in range(2))]
    engine = {"kv_cache_dtype": kind}
    answers, *twice = run(Job(checkpoint, rounds, engine), TOKENS)
    (stock,) = run(Job(checkpoint, [full()], engine, stock=True), TOKENS)
    assert answers[-len(stock) :] == stock
    assert twice[::2] == twice[1::2]
