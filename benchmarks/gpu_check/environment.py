"""Stage 1: what the machine is, and its ceilings."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_check.findings import Report

PACKAGES = ("vllm", "torch", "triton", "transformers", "flashinfer-python")
NEEDED = (
    "benchmarks.gpu_check.right",
    "benchmarks.gpu_check.asker",
    "benchmarks.gpu_check.fast",
    "benchmarks.gpu_check.hot",
    "benchmarks.gpu_check.families",
    "benchmarks.gpu_check.search",
    "benchmarks.worker",
    "tests.families.table",
    "tests.reference.model",
    "vtr_vllm.engine.register",
    "vtr_vllm.engine.scheduler",
    "vtr_vllm.engine.worker.model",
    "vtr_vllm.engine.worker.runner_v2",
    "vtr_vllm.search.cli",
    "vllm.v1.worker.gpu.model_runner",
)
"""What the later stages import."""
SIDE = 8192
"""Of the matrices whose product is timed."""


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def imports(report: Report) -> None:
    """Import what the later stages need."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            report.say(f"import {name}", False, f"{type(error).__name__}: {error}")
    missing = [name for name in NEEDED if name not in sys.modules]
    report.say("imports", not missing, f"{len(NEEDED) - len(missing)} of {len(NEEDED)}")


def attention(report: Report) -> None:
    """Say which FlashAttention vLLM will take."""
    from vllm.v1.attention.backends.fa_utils import (
        get_flash_attn_version,
        is_flash_attn_varlen_func_available,
    )

    version = get_flash_attn_version() if is_flash_attn_varlen_func_available() else None
    report.say("FlashAttention", version == 3, f"version {version}", version=version)


def timed(run: Callable[[], object], times: int) -> float:
    """Return seconds of one call on the GPU."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / times


def copy_rate() -> float:
    """Return bytes read and written per second by a copy on the device."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / timed(lambda: target.copy_(source), 10)


def matrix_rate() -> float:
    """Return FLOP per second of a bf16 product of two matrices [SIDE, SIDE]."""
    a, b = torch.randn(2, SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    return 2 * SIDE**3 / timed(lambda: a @ b, 10)


def ceilings(report: Report) -> None:
    """Measure copy bandwidth, bf16 matrix rate, and what launching costs."""
    rate = copy_rate() / 1e12
    report.say("copy bandwidth", None, f"{rate:.2f} TB/s, read and written", tb_per_s=rate)
    rate = matrix_rate() / 1e12
    report.say("bf16 matrices", None, f"{rate:.0f} TFLOP/s at {SIDE} cubed", tflop_per_s=rate)
    small = torch.zeros(1, device="cuda")
    launch = timed(lambda: small.add_(1), 2000) * 1e6
    report.say("launch", None, f"{launch:.1f} us for an operation of one element", us=launch)


def main() -> None:
    """Run the stage."""
    report = Report("environment")
    found = versions()
    report.say(
        "versions", None, ", ".join(f"{name} {value}" for name, value in found.items()), **found
    )
    imports(report)
    if not torch.cuda.is_available():
        report.say("card", None, "no GPU here")
        return
    card = torch.cuda.get_device_properties(0)
    gib = card.total_memory / (1 << 30)
    report.say(
        "card",
        None,
        f"{card.name}, {gib:.0f} GiB, {card.multi_processor_count} multiprocessors, compute"
        f" capability {card.major}.{card.minor}",
        card=card.name,
        gib=gib,
    )
    attention(report)
    ceilings(report)


if __name__ == "__main__":
    main()
