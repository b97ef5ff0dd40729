"""A conversation about images beside stock vLLM: ``python -m benchmarks.conversation --help``.

Turn 1 shows an image and asks; each further turn asks on, with all that was said before it in its
prompt (``--form talk``), also about an image of its own (``images``), or something else about the first
image (``questions``). Stock vLLM finds what was before in its prefix cache, and so does a request with a
local schedule. One that is guided by its question finds what lies before its first image. The
conversations are run in pairs, stock and VTR in turn on the same images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm, in_turn, log_folder
from benchmarks.dummies import DUMMIES
from benchmarks.record import measured_with, save, say, write
from benchmarks.report import measured, show
from benchmarks.shapes import FORMS, Shape, UnsupportedDevice, make_shape
from vtr_vllm.schedules import RankRule, ScheduleBook, to_wire

ARMS = (("full", 1.0), ("local", 0.5), ("local", 0.25), ("guided", 0.5), ("guided", 0.25))
"""Kinds of schedule, and budgets."""
SETTINGS = (
    *("shape", "form", "rule", "rounds", "turns", "conversations", "concurrency", "take_turns"),
    *("kv_mib", "tokens", "threads", "dtype", "eager"),
)
"""Options that change what is measured."""
Pair = dict[str, Any]


class Session:
    """Two arms and a supply of images that no conversation has used before."""

    def __init__(self, shape: Shape, stock: Arm, vtr: Arm, options: argparse.Namespace) -> None:
        self.stock, self.vtr, self.options = stock, vtr, options
        self.book = ScheduleBook(shape.geometry)
        self.next_image = 0

    def pair(self, kind: str, budget: float, number: int = 0, place: int = 0) -> Pair:
        """Measure conversations at ``budget`` in VTR, and the same in stock, at a place of a round."""
        spec = {
            "form": self.options.form,
            "first": self.next_image,
            "requests": self.options.conversations,
            "concurrency": self.options.concurrency,
            "output_tokens": self.options.tokens,
            "turns": self.options.turns,
            "take_turns": self.options.take_turns,
        }
        self.next_image += self.options.conversations
        order = [(self.stock, None), (self.vtr, self._wire(kind, budget))]
        found = {
            arm.name: arm.measure({**spec, "wire": each})
            for arm, each in in_turn(order, number, place)
        }
        same = [a == b for a, b in zip(*(f.pop("tokens") for f in found.values()), strict=True)]
        return {"kind": kind, "budget": budget, "same_tokens": sum(same) / len(same), **found}

    def _wire(self, kind: str, budget: float) -> Any:
        if kind == "full":
            return None
        if kind == "guided":
            return self.book.for_budget(budget, reuse=False).schedule.wire()
        layers = self.book.geometry.layers
        return to_wire([budget] * layers, [RankRule.parse(self.options.rule)])


def run(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every budget in every round; the results file is written anew after each pair."""
    meta = measured_with(options)
    meta["options"] |= {"dtype": shape.dtype}
    results: dict[str, Any] = {"meta": meta, "shape": shape.name, "pairs": []}

    def arm(name: str, logs: Path) -> Arm:
        log = logs / f"{name}.log"
        settings = {"num_gpu_blocks_override": blocks(shape, name, options.kv_mib << 20)}
        return Arm(
            name,
            shape,
            options.eager,
            log,
            options.threads,
            "benchmarks.talker",
            settings if options.kv_mib else {},
        )

    with log_folder("conversation") as logs, arm("stock", logs) as stock, arm("vtr", logs) as vtr:
        session = Session(shape, stock, vtr, options)
        for kind, budget in options.arms:
            session.pair(kind, budget)  # every kernel has run once
        for number in range(options.rounds):
            for place, (kind, budget) in enumerate(options.arms):
                pair = session.pair(kind, budget, number, place)
                results["pairs"].append(pair)
                write(options.out, results)
                walls = ", ".join(f"{arm} {pair[arm]['wall_s']:.2f} s" for arm in ("stock", "vtr"))
                say(f"round {number + 1} {kind} {budget}: {walls}")
    return results


def blocks(shape: Shape, arm: str, kv_bytes: int) -> int:
    """Return how many KV blocks an arm has in ``kv_bytes``: one holds the layers of a group of it."""
    from vtr_vllm.engine.common.config import band_starts  # vLLM behind it

    geometry = shape.geometry
    bands = len(band_starts(geometry.layers, None)) if arm == "vtr" else 1
    layers = -(-geometry.layers // bands)
    tokens = int(str(shape.engine_args(True)["block_size"]))
    width = 2 if shape.dtype == "bfloat16" else 4
    return kv_bytes // (2 * layers * tokens * geometry.kv_heads * geometry.head_dim * width)


def table(pairs: list[Pair]) -> str:
    """Return medians over the rounds, and stock over VTR within the pairs, a row a turn."""
    heads = "turn | cached of its prompt | TTFT stock / VTR, s | CPU s to first token | KV held"
    lines = [f"| schedule | {heads} |", "|---|---|---|---|---|---|"]
    for name, mine in _by_arm(pairs).items():
        for turn, last in enumerate(mine[-1]["vtr"]["turns"]):
            cells = [f"{last['cached_tokens']:.0f} of {last['prompt_tokens']:.0f}"]
            for key in ("ttft_s", "ttft_cpu_s"):
                cells.append(_times(mine, lambda f, t=turn, k=key: f["turns"][t][k]))
            cells.append("")
            lines.append(f"| {name} | {turn + 1} | {' | '.join(cells)} |")
        held = [p["vtr"]["kv_peak_bytes"] / p["stock"]["kv_peak_bytes"] for p in mine]
        cells = [_times(mine, lambda f: f["wall_s"]), _times(mine, lambda f: f["cpu_s"])]
        cells.append(f"{statistics.median(held):.2f}")
        lines.append(f"| {name} | all, to the last token | | {' | '.join(cells)} |")
    return "\n".join(lines)


def evens(pairs: list[Pair]) -> str:
    """Return from how many follow-ups on full budget is the cheaper one, per schedule."""
    lines = ["| schedule | by time | by CPU time |", "|---|---|---|"]
    for name, mine in _by_arm(pairs).items():
        found = [break_even(mine, key) for key in ("total_s", "total_cpu_s")]
        cells = ["" if even is None else f"{even:.1f} follow-ups" for even in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def break_even(pairs: list[Pair], key: str) -> float | None:
    """Follow-up turns at which a conversation costs stock as much as VTR; None where there are none.

    VTR saves in turn 1 and pays in each later one, which stock has in its cache. Medians over the
    rounds of the differences in ``key``.
    """

    def gain(turn: int) -> float:
        return statistics.median(
            pair["stock"]["turns"][turn][key] - pair["vtr"]["turns"][turn][key] for pair in pairs
        )

    later = statistics.fmean(gain(turn) for turn in range(1, len(pairs[0]["stock"]["turns"])))
    return None if gain(0) <= 0 or later >= 0 else gain(0) / -later


def _by_arm(pairs: list[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(f"{pair['kind']} {pair['budget']:g}", []).append(pair)
    return found


def _times(pairs: list[Pair], of: Callable[[Any], float]) -> str:
    stock, vtr = (statistics.median(of(pair[arm]) for pair in pairs) for arm in ("stock", "vtr"))
    ratios = [of(pair["stock"]) / of(pair["vtr"]) for pair in pairs]
    return (
        f"{stock:.3f} / {vtr:.3f} = {show((statistics.median(ratios), min(ratios), max(ratios)))}"
    )


def _arms(text: str) -> list[tuple[str, float]]:
    kinds, asked = {kind for kind, _ in ARMS}, set(text.split(","))
    if unknown := ", ".join(sorted(asked - kinds)):
        raise argparse.ArgumentTypeError(
            f"no such kind: {unknown}; there are {', '.join(sorted(kinds))}"
        )
    return [arm for arm in ARMS if arm[0] in asked]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversation", description=__doc__)
    parser.add_argument("--shape", choices=DUMMIES, default="half-b")
    parser.add_argument("--form", choices=FORMS, default="talk", help="of what follows turn 1")
    parser.add_argument("--rule", default="saliency", help="of the local schedules, before layer 0")
    parser.add_argument(
        "--arms",
        type=_arms,
        default=ARMS,
        help="kinds of schedule, such as full,local; default all",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=2, help="in each arm of each pair")
    parser.add_argument("--concurrency", type=int, default=1, help="of them at the same time")
    parser.add_argument(
        "--take-turns", action="store_true", help="a turn comes once all conversations had the last"
    )
    parser.add_argument("--kv-mib", type=int, default=0, help="of KV cache; 0: vLLM's own choice")
    parser.add_argument("--tokens", type=int, default=16, help="output tokens of a turn")
    parser.add_argument("--threads", type=int, help="CPU threads of each engine; default all cores")
    parser.add_argument("--dtype", help="default bfloat16; float32 on a CPU without AVX-512 BF16")
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/conversation.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON and Markdown."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="vtr-conversation-models-") as scratch:
        gpu = torch.cuda.is_available()
        try:
            shape = make_shape(options.shape, Path(scratch), None, gpu, options.dtype)
        except UnsupportedDevice as error:
            sys.exit(f"benchmarks.conversation: {error}")
        longest = options.turns * (shape.vision_tokens + 60 + options.tokens)
        if options.form == "images":  # one more of them in each turn
            shape = replace(shape, max_model_len=max(shape.max_model_len, longest))
        results = run(shape, options)
    heading, pairs = measured(results["meta"], *SETTINGS), results["pairs"]
    text = f"{heading}\n\n{table(pairs)}\n\n{evens(pairs)}"
    save(options.out, results, text)


if __name__ == "__main__":
    main()
