"""Stage 3: speed beside stock vLLM, LLaVA-1.5-7B's shape with dummy weights.

Both arms stay alive and are measured in turn. Stock runs before and after VTR's budgets of a load,
and a ratio is against the mean of the two. Prompts and images are rendered before the clock starts:
that is another process's work in a server, and no schedule makes it cheaper.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm
from benchmarks.cost import predict
from benchmarks.gpu_check.findings import Report
from benchmarks.shapes import Shape, make_shape
from vtr_vllm.schedules import Schedule, ScheduleBook

BUDGETS = (0.25, 1.0, 0.5, 0.125)
"""The most telling first: time may end the stage."""
OUTPUT_TOKENS = 64
KV_BYTES = 20 << 30
"""Equal in both arms, so that two of 7B fit an 80 GB card: 64 requests of 640 tokens in full."""


@dataclass(frozen=True)
class Load:
    """So many requests, at most ``concurrency`` at once."""

    concurrency: int
    requests: int
    tokens: int
    budgets: tuple[float, ...] = BUDGETS

    @property
    def name(self) -> str:
        """What it is called in the tables."""
        kind = "prefill" if self.tokens == 1 else f"serve {self.tokens}"
        return f"{kind}, {self.concurrency} in flight"


LOADS = {
    "llava-7b": (
        Load(8, 24, 1),
        Load(1, 10, 1),
        Load(64, 64, OUTPUT_TOKENS),
        Load(1, 2, OUTPUT_TOKENS),
        Load(32, 64, 1, (0.25, 1.0)),
        Load(128, 128, OUTPUT_TOKENS, (0.25, 1.0)),
        Load(16, 32, OUTPUT_TOKENS, (0.25, 1.0)),
    ),
    "internvl2-8b": (Load(8, 16, 1, (0.25, 1.0)), Load(64, 64, OUTPUT_TOKENS, (0.25, 1.0))),
    "qwen2.5-vl-7b": (Load(8, 16, 1, (0.25, 1.0)), Load(64, 64, OUTPUT_TOKENS, (0.25, 1.0))),
    "demo": (Load(2, 2, 1, (0.25, 1.0)), Load(2, 2, 2, (0.25,))),
}


def settings(dry_run: bool, fast_start: bool = False) -> dict[str, Any]:
    """Return the engine arguments of both arms beside the shape's."""
    if dry_run:
        return {"max_num_seqs": 8}
    graphs: dict[str, Any] = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128]}
    if fast_start:  # a minute less for each arm; prefill runs uncompiled in both
        graphs |= {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return {
        "max_num_seqs": 128,
        "kv_cache_memory_bytes": KV_BYTES,
        "gpu_memory_utilization": 0.3,
        "enable_prefix_caching": False,
        "compilation_config": graphs,
    }


class Pair:
    """Both arms of one shape, and a supply of images that no request has used before."""

    def __init__(self, shape: Shape, stock: Arm, vtr: Arm) -> None:
        self.shape, self.stock, self.vtr = shape, stock, vtr
        self._book = ScheduleBook(shape.geometry)
        self._next_image = 0

    def schedule(self, budget: float) -> Schedule:
        """Return what VTR runs at a budget."""
        return self._book.for_budget(budget, reuse=False).schedule

    def warm_up(self) -> int:
        """Let both arms meet what will run; return a prompt's text tokens."""
        found: dict[str, Any] = {}
        for budget in BUDGETS:
            found = self._measure(self.vtr, Load(4, 4, 3), budget)
            if budget == 1.0:
                found = self._measure(self.stock, Load(4, 4, 3), None)
        return int(found["prompt_tokens"]) - self.shape.vision_tokens

    def load(self, load: Load) -> Iterator[tuple[float, dict[str, Any], dict[str, Any]]]:
        """Yield (budget, stock's numbers, VTR's) of a load."""
        stock = [self._measure(self.stock, load, None)]
        found = [(budget, self._measure(self.vtr, load, budget)) for budget in load.budgets]
        stock.append(self._measure(self.stock, load, None))
        mean = {
            name: statistics.fmean([stock[0][name], stock[1][name]])
            for name, value in stock[0].items()
            if isinstance(value, int | float)
        }
        for budget, numbers in found:
            yield budget, mean | {"runs": [s["wall_s"] for s in stock]}, numbers

    def _measure(self, arm: Arm, load: Load, budget: float | None) -> dict[str, Any]:
        spec = {
            "first": self._next_image,
            "requests": load.requests,
            "concurrency": load.concurrency,
            "output_tokens": load.tokens,
            "render_first": True,
            "wire": None if budget is None else self.schedule(budget).wire(),
        }
        self._next_image += load.requests
        found = arm.measure(spec)
        found.pop("tokens")
        return found


RATIOS = {
    "requests_per_s": "requests/s",
    "ttft_median_s": "TTFT",
    "itl_mean_s": "ITL",
    "itl_median_s": "median ITL",
    "kv_peak_bytes": "KV held",
    "peak_running": "running",
}
"""What is compared; of times and bytes the ratio is VTR over stock, below 1 is better."""


def compare(
    pair: Pair, load: Load, text: int, stock: dict[str, Any], budget: float, vtr: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return a line about a measurement, and its numbers."""
    ratios = {name: vtr[name] / stock[name] for name in RATIOS if vtr.get(name) and stock.get(name)}
    parts = [f"{RATIOS[name]} {ratio:.2f}" for name, ratio in ratios.items()]
    numbers: dict[str, Any] = {
        "load": load.name,
        "budget": budget,
        "ratios": ratios,
        "stock": stock,
        "vtr": vtr,
    }
    if load.tokens == 1:
        predicted = predict(pair.shape, pair.schedule(budget), text).ratio
        share = ratios["requests_per_s"] / predicted
        numbers |= {"predicted": predicted, "measured_over_predicted": share}
        parts.append(f"predicted {predicted:.2f}, {share:.2f} of it")
    return f"VTR/stock: {', '.join(parts)}", numbers


def measure(report: Report, name: str, dry_run: bool, fast_start: bool, seconds: float) -> None:
    """Measure a shape until ``seconds`` are over; findings are written load by load."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        shape = make_shape(name, folder, None, torch.cuda.is_available())
        stock, vtr = (
            Arm(arm, shape, dry_run, folder / f"{arm}.log", settings=settings(dry_run, fast_start))
            for arm in ("stock", "vtr")
        )
        stack.enter_context(stock)
        stack.enter_context(vtr)
        begun = time.monotonic()
        report.say(f"{name}: stock", True, "started", **stock.info)
        report.say(f"{name}: vtr", True, "started", **vtr.info)
        pair = Pair(shape, stock, vtr)
        text = pair.warm_up()
        report.say(
            f"{name}: ready",
            None,
            f"both engines after {time.monotonic() - begun:.0f} s; {shape.vision_tokens} vision and"
            f" {text} text tokens",
        )
        for load in LOADS[name]:
            if time.monotonic() > end:
                report.say(f"{name}: {load.name}", None, "left out: the time is over")
                continue
            for budget, of_stock, of_vtr in pair.load(load):
                line, numbers = compare(pair, load, text, of_stock, budget, of_vtr)
                report.say(f"{name}: {load.name} at {budget}", None, line, **numbers)


def parse(name: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options of a stage that measures shapes."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu_check.{name}")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--fast-start", action="store_true", help="graphs without compilation")
    parser.add_argument("--out", type=Path, help="where traces go")
    parser.add_argument("--arm", choices=["stock", "vtr"], help="of hot: only this one")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the stage."""
    report, options = Report("fast"), parse("fast")
    shape = "demo" if options.dry_run else "llava-7b"
    measure(report, shape, options.dry_run, options.fast_start, options.seconds - 30)


if __name__ == "__main__":
    main()
