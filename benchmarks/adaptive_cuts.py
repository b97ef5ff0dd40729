"""What it costs to find counts at a cut: ``python -m benchmarks.adaptive_cuts --help``.

One engine. Requests with adaptive cuts, and the same requests with the counts that these found given beforehand,
strictly in turn, each on images whose tower has run: prefill alone, then answers, over which the KV that is
held is summed. Which of the two goes first flips from pair to pair. With ``--modules`` trained ATP modules find
the counts (of made-up weights, as the model's are), and the others rank by attention from the text.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm, in_turn, log_folder
from benchmarks.one_engine import add_engine_options, of_one_engine
from benchmarks.record import say, write
from benchmarks.report import measured
from benchmarks.shapes import NAMES, Shape
from vtr_vllm.atp.artefact import Artefact, describe
from vtr_vllm.atp.facts import Facts
from vtr_vllm.atp.module import AtpModules
from vtr_vllm.atp.module import Shape as ModuleShape
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.schedules import RankRule, Schedule, explicit

SETTINGS = (
    "shape",
    "cuts",
    "share",
    "modules",
    "most",
    "rounds",
    "tokens",
    "eager",
    "threads",
    "dtype",
)
"""Options that change what is measured."""
WAYS = ("adaptive", "known")


def schedule(shape: Shape, options: argparse.Namespace) -> Schedule:
    """Adaptive cuts before ``--cuts``, of which the first keeps at most ``--most``, each next that share."""
    layers = shape.geometry.layers
    keep = [options.most ** sum(cut <= layer for cut in options.cuts) for layer in range(layers)]
    rule = RankRule.parse("atp" if options.modules else f"last@{options.share}")
    return explicit(shape.geometry, keep, [rule] * len(options.cuts))


def modules(shape: Shape, layers: Sequence[int]) -> Path:
    """Write modules that let about half of an image's tokens stay at each cut; returns their folder."""
    torch.manual_seed(0)
    geometry = shape.geometry
    made = AtpModules(layers, ModuleShape(state=geometry.kv_heads * geometry.head_dim))
    for index in range(len(layers)):
        made.cut(index).heads.bias.data = torch.tensor([-0.6, 4.0])
    side = round(shape.vision_tokens**0.5)
    nothing = dict.fromkeys(("target", "lora", "data", "options", "losses", "scores"))
    digest = checkpoint_digest(str(shape.model))
    values = describe(digest, geometry, (side, side), made, n_min=1, **nothing)
    folder = shape.model.with_name(f"{shape.model.name}-atp")
    Artefact(made, Facts(values, folder)).save()
    return folder


def pairs(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every pair that was measured: by way, wall time in seconds and blocks times steps."""
    wire, first = schedule(shape, options).wire(), 0
    settings: dict[str, object] = {}
    if options.modules:
        settings["additional_config"] = {"vtr": {"atp": str(modules(shape, options.cuts))}}
    found: list[dict[str, Any]] = []
    with (
        log_folder("adaptive-cuts") as logs,
        Arm(
            *("vtr", shape, options.eager, logs / "vtr.log", options.threads),
            module="benchmarks.counting",
            settings=settings,
        ) as arm,
    ):
        for number in range(options.rounds):
            for concurrency in options.concurrency:
                for tokens in (1, options.tokens):
                    spec = {"first": first, "requests": concurrency, "concurrency": concurrency}
                    spec |= {"wire": wire, "render_first": True}
                    learnt = arm.measure({**spec, "output_tokens": 1, "known": False})
                    spec["output_tokens"] = tokens
                    made = {
                        way: arm.measure({**spec, "known": way == "known"})
                        for way in in_turn(WAYS, number, len(found))
                    }
                    first += concurrency
                    same = made["adaptive"]["tokens"] == made["known"]["tokens"]
                    pair = {"concurrency": concurrency, "tokens": tokens, "same": same}
                    kept = [sum(each) / len(each) / each[0] for each in learnt["counts"]]
                    pair |= {"mean_keep": statistics.fmean(kept)}
                    for way, one in made.items():
                        pair[way] = {"wall_s": one["wall_s"], "kv": one["kv_block_steps"]}
                    found.append(pair)
                    say(f"round {number + 1} c={concurrency} tokens={tokens}: {pair}")
    return found


def ratio(some: list[dict[str, Any]], of: str) -> str:
    """Median, least and greatest of adaptive over known."""
    each = [pair["adaptive"][of] / pair["known"][of] for pair in some]
    return f"{statistics.median(each):.3f} [{min(each):.3f}, {max(each):.3f}]"


def table(found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """One row for each number of requests in flight."""
    lines = [
        "| in flight | mean keep | prefill, ms more | prefill, times | with the answer, times | KV held, times |",
        "|---|---|---|---|---|---|",
    ]
    for concurrency in options.concurrency:
        own = [pair for pair in found if pair["concurrency"] == concurrency]
        prefill = [pair for pair in own if pair["tokens"] == 1]
        whole = [pair for pair in own if pair["tokens"] != 1]
        more = [pair["adaptive"]["wall_s"] - pair["known"]["wall_s"] for pair in prefill]
        keep = statistics.fmean(pair["mean_keep"] for pair in own)
        lines.append(
            f"| {concurrency} | {keep:.3f} | {1000 * statistics.median(more):.1f} |"
            f" {ratio(prefill, 'wall_s')} | {ratio(whole, 'wall_s')} | {ratio(whole, 'kv')} |"
        )
    same = sum(pair["same"] for pair in found)
    return "\n".join([*lines, "", f"Same tokens in {same} of {len(found)} pairs."])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive_cuts", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=NAMES, default="llava")
    add("--cuts", type=int, nargs="+", default=[2, 12], help="layers before which a cut lies")
    add("--share", type=float, default=0.5, help="of the attention that stays at each")
    add(
        "--modules",
        action="store_true",
        help="which find the counts, and not a share of the attention",
    )
    add("--most", type=float, default=0.8, help="share of the tokens that may stay at each")
    add("--tokens", type=int, default=64, help="of an answer")
    add_engine_options(parser)
    add("--out", type=Path, default=Path("benchmarks/results/adaptive-cuts.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    options = parse(arguments)
    meta, found = of_one_engine("adaptive-cuts", options, pairs)
    write(options.out, {"meta": meta, "pairs": found})
    print(f"{measured(meta, *SETTINGS)}\n\n{table(found, options)}")


if __name__ == "__main__":
    main()
