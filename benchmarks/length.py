"""Long prompts in chunks, beside stock vLLM: ``python -m benchmarks.length --help``.

Videos, or a row of images, many times longer than a step. With a local schedule a step takes as many
whole frames or images as it holds, with whoever decodes. Measured: the time to the first token, held against
the share of stock's FLOPs, and the longest that a request waits for a token that decodes meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm, log_folder
from benchmarks.record import measured_with, save, say
from benchmarks.report import measured, show
from benchmarks.shapes import CLIP, LONG_FORMS, NAMES, Shape, long_request_cost, make_shape
from vtr_vllm.schedules import ModelGeometry, RankRule, to_wire

COUNTS = {"videos": 50, "images": 24}
"""Of temporal patches of 324 vision tokens, or of images."""
STEP_TOKENS = 2048
SETTINGS = ("shape", "budget", "rule", "rounds", "threads", "dtype")
"""Options that change what is measured."""
Pair = dict[str, Any]


def run(shape: Shape, form: str, options: argparse.Namespace) -> list[Pair]:
    """Measure one form in every round, stock and VTR in turn."""
    settings = {
        "max_num_batched_tokens": STEP_TOKENS,
        "max_model_len": 32768,
        "limit_mm_per_prompt": {"image": COUNTS["images"], "video": -(-COUNTS["videos"] // CLIP)},
        "skip_mm_profiling": True,
    }
    layers = shape.geometry.layers
    wire = to_wire([options.budget] * layers, [RankRule.parse(options.rule)])

    def arm(name: str, logs: Path) -> Arm:
        log = logs / f"{name}.log"
        return Arm(name, shape, True, log, options.threads, "benchmarks.neighbour", settings)

    pairs: list[Pair] = []
    with log_folder("length") as logs, arm("stock", logs) as stock, arm("vtr", logs) as vtr:
        order = [(stock, None), (vtr, wire)]
        for each, given in order:  # every kernel runs once
            each.measure({"form": form, "count": 2, "first": options.rounds, "wire": given})
        for number in range(options.rounds):
            spec = {"form": form, "count": COUNTS[form], "first": number}
            found = {
                each.name: each.measure({**spec, "wire": given})
                for each, given in (order if number % 2 else order[::-1])
            }
            pairs.append({"form": form, **found})
            times = ", ".join(f"{arm} {made['ttft_s']:.1f} s" for arm, made in found.items())
            say(f"round {number + 1} {form}: {times}")
    return pairs


def table(shape: Shape, pairs: Sequence[Pair], budget: float) -> str:
    """Return medians over the rounds, and VTR over stock within the pairs."""
    lines = [
        "| prompt | vision tokens | steps stock / VTR | to the first token stock / VTR, s"
        " | VTR over stock | by FLOPs | over it | longest gap of a neighbour stock / VTR, s | KV held |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for form in dict.fromkeys(pair["form"] for pair in pairs):
        mine = [pair for pair in pairs if pair["form"] == form]

        def median(arm: str, key: str, mine: Sequence[Pair] = mine) -> float:
            return statistics.median(pair[arm][key] for pair in mine)

        vision, tower = long_request_cost(shape, form, COUNTS[form])
        n_text = mine[0]["stock"]["prompt_tokens"] - vision
        share = share_of_flops(shape.geometry, vision, n_text, budget, tower)
        ratios = [pair["vtr"]["ttft_s"] / pair["stock"]["ttft_s"] for pair in mine]
        held = median("vtr", "kv_peak_bytes") / median("stock", "kv_peak_bytes")
        ratio = statistics.median(ratios)
        cells = [
            form,
            f"{vision:,}",
            f"{median('stock', 'steps'):.0f} / {median('vtr', 'steps'):.0f}",
            f"{median('stock', 'ttft_s'):.2f} / {median('vtr', 'ttft_s'):.2f}",
            show((ratio, min(ratios), max(ratios))),
            f"{share:.3f}",
            f"{ratio / share:.2f}",
            f"{median('stock', 'longest_gap_s'):.2f} / {median('vtr', 'longest_gap_s'):.2f}",
            f"{held:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share_of_flops(
    geometry: ModelGeometry, n_vision: int, n_text: int, budget: float, tower: int
) -> float:
    """Return the share of stock's multiply-adds that is left where each layer keeps ``budget``.

    Unlike the cost model of the schedules, which follows the papers, a query counts what is before it
    alone: in prompts of this length attention is most of the work.
    """

    def flops(rows: float) -> float:
        heads = geometry.heads * geometry.head_dim
        kv = geometry.kv_heads * geometry.head_dim
        hidden = geometry.hidden_size
        linear = hidden * (2 * heads + 2 * kv) + 3 * hidden * geometry.intermediate_size
        return geometry.layers * (rows * linear + rows * rows * heads)

    return (flops(budget * n_vision + n_text) + tower) / (flops(n_vision + n_text) + tower)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=__doc__)
    names = [name for name in NAMES if "qwen" in name or name == "long"]
    parser.add_argument("--shape", choices=names, default="long")
    parser.add_argument("--forms", nargs="+", choices=LONG_FORMS, default=LONG_FORMS)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--rule", default="saliency", help="of the schedule, before layer 0")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads of each engine; default all cores")
    parser.add_argument("--dtype", help="default bfloat16; float32 on a CPU without AVX-512 BF16")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/length.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON and Markdown."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vtr-length-models-") as scratch:
        shape = make_shape(options.shape, Path(scratch), None, has_gpu=True, dtype=options.dtype)
        meta = measured_with(options)
        meta["options"] |= {"dtype": shape.dtype}
        pairs = [pair for form in options.forms for pair in run(shape, form, options)]
        text = f"{measured(meta, *SETTINGS)}\n\n{table(shape, pairs, options.budget)}"
    save(options.out, {"meta": meta, "pairs": pairs}, text)


if __name__ == "__main__":
    main()
