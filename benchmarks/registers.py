"""A model with registers beside the same one in stock vLLM without: ``python -m benchmarks.registers --help``.

The sizes of a model and made-up weights: how fast a model runs does not depend on what it says. Both engines
stay alive and are measured strictly in turn, on the same images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm, in_turn, log_folder
from benchmarks.one_engine import add_engine_options, of_one_engine
from benchmarks.record import say, write
from benchmarks.report import measured
from benchmarks.shapes import Shape
from vtr_vllm.engine.common.registers import REGISTERS_KEY
from vtr_vllm.schedules import Schedule, explicit

SETTINGS = ("shape", "dtype", "registers", "layer", "waves", "rounds", "eager", "threads")
"""Options that change what is measured."""


def with_registers(shape: Shape, registers: int) -> Path:
    """Return the folder of the same checkpoint with so many registers."""
    folder = shape.model.with_name(f"{shape.model.name}-registers")
    shutil.copytree(shape.model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), REGISTERS_KEY: registers}))
    return folder


def schedule(shape: Shape, registers: int, layer: int) -> Schedule:
    """Return the schedule by which all else of an image goes before ``layer``."""
    rate = registers / (shape.vision_tokens + registers)
    layers = shape.geometry.layers
    keep = [1.0] * layer + [rate] * (layers - layer)
    return explicit(shape.geometry, keep, ["registers"])


def pairs(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every pair that was measured: seconds and KV bytes of both arms."""
    wire = schedule(shape, options.registers, options.layer).wire()
    settings = {"model": str(with_registers(shape, options.registers))}
    found: list[dict[str, Any]] = []
    first = 0
    with (
        log_folder("registers") as logs,
        Arm("stock", shape, options.eager, logs / "stock.log", options.threads) as stock,
        Arm(
            *("vtr", shape, options.eager, logs / "vtr.log", options.threads), settings=settings
        ) as vtr,
    ):
        for number in range(-1, options.rounds):
            for concurrency in options.concurrency:
                for tokens in options.tokens:
                    requests = concurrency * options.waves
                    spec = {"first": first, "requests": requests, "concurrency": concurrency}
                    spec |= {"output_tokens": tokens, "render_first": True}
                    first += requests
                    order = in_turn([(stock, None), (vtr, wire)], number, len(found))
                    made = {arm.name: arm.measure({**spec, "wire": own}) for arm, own in order}
                    if number < 0:  # both meet every load once
                        continue
                    pair: dict[str, Any] = {"concurrency": concurrency, "tokens": tokens}
                    for name, one in made.items():
                        pair[name] = {"wall_s": one["wall_s"], "kv": one["kv_peak_bytes"]}
                    found.append(pair)
                    say(f"round {number + 1}: {pair}")
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One row for each load: throughput and KV, as times stock's."""
    lines = ["| in flight | tokens of an answer | throughput, times | KV held, times |"]
    lines.append("|---|---|---|---|")
    for load in dict.fromkeys((pair["concurrency"], pair["tokens"]) for pair in found):
        own = [pair for pair in found if (pair["concurrency"], pair["tokens"]) == load]
        faster = [pair["stock"]["wall_s"] / pair["vtr"]["wall_s"] for pair in own]
        held = statistics.median(pair["vtr"]["kv"] / pair["stock"]["kv"] for pair in own)
        lines.append(
            f"| {load[0]} | {load[1]} | {statistics.median(faster):.2f} [{min(faster):.2f},"
            f" {max(faster):.2f}] | {held:.3f} |"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registers", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=("llava", "llava-7b"), default="llava")
    add("--registers", type=int, default=8)
    add("--layer", type=int, default=3, help="before which all else of an image goes")
    add("--tokens", type=int, nargs="+", default=[2, 128], help="of an answer")
    add("--waves", type=int, default=2, help="requests per place in flight")
    add_engine_options(parser)
    add("--out", type=Path, default=Path("benchmarks/results/registers.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    options = parse(arguments)
    meta, found = of_one_engine("registers", options, pairs)
    write(options.out, {"meta": meta, "pairs": found})
    print(f"{measured(meta, *SETTINGS)}\n\n{table(found)}")


if __name__ == "__main__":
    main()
