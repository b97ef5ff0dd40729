"""What each stage takes on an H100, by calculation: weights, graphs, FLOPs and bytes, no guess of load.

The rates are those of an H100 SXM at what kernels reach of them; the times of start-up are those of
vLLM 0.32 for a 7B model on 16 cores with an empty compile cache.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from benchmarks.cost import predict
from benchmarks.gpu_check.families import SHAPES
from benchmarks.gpu_check.fast import LOADS, Load
from benchmarks.gpu_check.right import ENGINES_AT_ONCE, WAYS
from benchmarks.shapes import Shape, make_shape
from vtr_vllm.schedules import ModelGeometry, ScheduleBook, kv_bytes

FLOP_PER_S = 550e12
"""bf16, dense: two thirds of what large matrices reach."""
BYTES_PER_S = 3.0e12
IMPORT_S = 20.0
"""Python, torch and vLLM, from a cold disk."""
COMPILE_S = 75.0
"""Both arms compile side by side; seen on an H200."""
CAPTURE_S = 0.5
"""A graph of a decoder of 32 layers; eight sizes, piecewise and full."""
TINY_ENGINE_S = 45.0
"""Start of an engine of the demo model, compiled or not, and its questions; seen on an H200."""
TEXT = 31


def weights(geometry: ModelGeometry, vocabulary: int) -> int:
    """Return the decoder's bytes in bf16."""
    attention = geometry.hidden_size * geometry.head_dim * 2
    attention *= geometry.heads + geometry.kv_heads
    mlp = 3 * geometry.hidden_size * geometry.intermediate_size
    return 2 * (geometry.layers * (attention + mlp) + 2 * vocabulary * geometry.hidden_size)


def seconds(shape: Shape, load: Load, budget: float) -> float:
    """Return what one arm takes for a load."""
    schedule = ScheduleBook(shape.geometry).for_budget(budget, reuse=False).schedule
    cost = predict(shape, schedule, TEXT)
    prefill = 2 * (cost.decoder_reduced + cost.tower) / FLOP_PER_S
    counts = schedule.counts(shape.vision_tokens)
    stored = kv_bytes(shape.geometry, counts, TEXT + load.tokens, 2)
    running = min(load.concurrency, load.requests)
    vocabulary = int(shape.config["text_config"]["vocab_size"])
    step = (weights(shape.geometry, vocabulary) + running * stored) / BYTES_PER_S
    waves = math.ceil(load.requests / load.concurrency)
    return load.requests * prefill + waves * (load.tokens - 1) * step


def shape_seconds(name: str) -> dict[str, float]:
    """Return the parts of a stage that measures a shape in both arms."""
    with tempfile.TemporaryDirectory() as folder:
        shape = make_shape(name, Path(folder), None, has_gpu=True)
        loads = sum(
            2 * seconds(shape, load, 1.0) + sum(seconds(shape, load, b) for b in load.budgets)
            for load in LOADS[name]
        )
    return {"import": IMPORT_S, "compile": COMPILE_S, "graphs": 16 * CAPTURE_S, "loads": loads}


def stage_seconds() -> dict[str, dict[str, float]]:
    """Return the parts of each stage."""
    engines = len(WAYS) + sum(1 for way in WAYS if not way.like)
    waves = math.ceil(engines / ENGINES_AT_ONCE)
    families = {"tests": 150.0}
    for name in SHAPES:
        families |= {f"{name}: {part}": value for part, value in shape_seconds(name).items()}
    return {
        "environment": {"import": IMPORT_S, "ceilings": 1.0},
        "right": {f"{engines} engines in {waves} waves": IMPORT_S + waves * TINY_ENGINE_S},
        "fast": shape_seconds("llava-7b"),
        "hot": {"import": 2 * IMPORT_S, "start, from the compile cache": 50.0, "steps": 10.0},
        "families": families,
        "search": {"import": IMPORT_S, "start": 5.0, "evaluations": 20.0},
    }


def table() -> str:
    """Return the stages' times as markdown."""
    lines = ["| stage | seconds | of which |", "|---|---|---|"]
    for name, parts in stage_seconds().items():
        what = ", ".join(f"{part} {value:.0f}" for part, value in parts.items())
        lines.append(f"| {name} | {sum(parts.values()):.0f} | {what} |")
    return "\n".join(lines)
