"""Markdown tables from a results file: medians of the rounds' ratios, with least and greatest."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

Pair = dict[str, Any]
MIB = 2**20


def render(results: dict[str, Any]) -> str:
    """Return all tables of a results file."""
    parts = [heading(results["meta"])]
    for name, facts in results["shapes"].items():
        pairs = [pair for pair in results["pairs"] if pair["shape"] == name]
        parts += [describe(name, facts, pairs), prefill_table(facts, pairs), stage_table(pairs)]
        parts.append(serve_table(pairs))
        parts.append(footnotes(pairs))
    return "\n\n".join(part for part in parts if part)


def heading(meta: dict[str, Any]) -> str:
    """Return where, when and how it was measured."""
    quick = ", quick" if meta.get("quick") else ""
    return (
        f"{measured(meta, 'form', 'threads', 'eager', 'waves')}"
        f" {meta['rounds']} round(s) asked{quick}. Cells: median of the rounds [least, greatest]."
    )


def measured(meta: dict[str, Any], *settings: str) -> str:
    """Return where and when it was measured, and the options that change what is measured.

    An option at None is left out: what it stands for is the tool's own choice.
    """
    device = meta["gpu"] or f"{meta['cpu']}, {meta['cores']} cores"
    options = meta.get("options", {})
    found = [(name.replace("_", " "), options.get(name)) for name in settings]
    said = "".join(f", {name} {_option(value)}" for name, value in found if value is not None)
    return f"Measured {meta['date']} on {device}, commit {meta['commit']}{said}."


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def describe(name: str, facts: dict[str, Any], pairs: list[Pair]) -> str:
    """Return a shape's sizes and settings, and how many rounds its pairs are of."""
    g, stock, vtr = facts["geometry"], facts["arms"]["stock"], facts["arms"]["vtr"]
    settings = ", ".join(f"{k}={v}" for k, v in facts["settings"].items())
    return (
        f"### {name}\n\n{g['layers']} layers, hidden {g['hidden_size']}, heads {g['heads']}"
        f" (KV {g['kv_heads']}) of {g['head_dim']}, MLP {g['intermediate_size']}, vocabulary"
        f" {facts['vocabulary']}; {facts['vision_tokens']} vision and {facts['text_tokens']} text"
        f" tokens; tower's share of prefill FLOPs {facts['tower_share']:.1%}; vLLM"
        f" {stock['vllm']}, torch {stock['torch']}, {stock['threads']} threads; KV groups"
        f" {len(stock['kv_groups'])} (stock), {len(vtr['kv_groups'])} (VTR). Settings of both"
        f" arms: {settings}. {rounds_run(pairs)} measured."
    )


def rounds_run(pairs: list[Pair]) -> str:
    """Return how many rounds the cells have: fewer than asked where the time was over before."""
    cells = Counter((pair["scenario"], pair["concurrency"], pair["budget"]) for pair in pairs)
    least, most = min(cells.values(), default=0), max(cells.values(), default=0)
    return f"{most} round(s)" if least == most else f"{least} to {most} rounds of a cell"


def prefill_table(facts: dict[str, Any], pairs: list[Pair]) -> str:
    """Return stock over VTR time for one output token, beside what FLOPs predict."""
    rows = [
        "Prefill only (one output token): time of stock over time of VTR; the CPU time of the"
        " engine's process likewise, which other processes disturb less. The last columns are the"
        " decoder's: what is left of both times without rendering and vision tower, which no schedule"
        " makes cheaper.\n",
        "| in flight | budget | schedule | stock s/request | VTR s/request | time ratio"
        " | CPU time ratio | ratio by FLOPs | measured / predicted"
        " | decoder | by FLOPs | measured / predicted |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (concurrency, budget), rounds in grouped(pairs, "prefill").items():
        ratio = spread(rounds, lambda p: p["stock"]["wall_s"] / p["vtr"]["wall_s"])
        predicted = facts["predicted"][str(budget)]
        decoder = facts["predicted_decoder"][str(budget)]
        rows.append(
            f"| {concurrency} | {budget} | {rounds[0]['schedule']}"
            f" | {middle(rounds, 'stock', 'requests_per_s', invert=True):.3f}"
            f" | {middle(rounds, 'vtr', 'requests_per_s', invert=True):.3f} | {show(ratio)}"
            f" | {show(spread(rounds, over('cpu_s', 'stock', 'vtr')))}"
            f" | {predicted:.2f} | {ratio[0] / predicted:.2f} | {_decoder(rounds, decoder)} |"
        )
    return "\n".join(rows) if len(rows) > 3 else ""


def _decoder(rounds: list[Pair], predicted: float) -> str:
    if "tower_s" not in rounds[0]["stock"]:
        return "unknown | unknown | unknown"
    ratio = spread(rounds, lambda pair: _rest(pair["stock"]) / _rest(pair["vtr"]))
    return f"{show(ratio)} | {predicted:.2f} | {ratio[0] / predicted:.2f}"


def _rest(arm: dict[str, float]) -> float:
    return arm["wall_s"] - arm["render_s"] - arm["tower_s"]


def stage_table(pairs: list[Pair]) -> str:
    """Return where the time of a prefill goes, in both arms."""
    rows = [
        "Where that time goes, ms a request: rendering (prompt and image), vision tower, and the rest,"
        " which is the decoder and the engine around it.\n",
        "| in flight | budget | stock: render | tower | decoder | VTR: render | tower | decoder |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (concurrency, budget), rounds in grouped(pairs, "prefill").items():
        if "tower_s" not in rounds[0]["stock"]:
            continue
        cells = [str(concurrency), str(budget)]
        for name in ("stock", "vtr"):
            for stage in (lambda arm: arm["render_s"], lambda arm: arm["tower_s"], _rest):
                each = [1e3 * stage(pair[name]) / pair[name]["requests"] for pair in rounds]
                cells.append(f"{statistics.median(each):.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) if len(rows) > 3 else ""


def serve_table(pairs: list[Pair]) -> str:
    """Return throughput, latencies and KV memory of both arms."""
    served = grouped(pairs, "serve")
    if not served:
        return ""
    tokens = next(iter(served.values()))[0]["output_tokens"]
    rows = [
        f"Prefill and decode ({tokens} output tokens). Throughput and KV are VTR over stock,"
        " times stock over VTR: above 1 VTR is faster, KV below 1 it holds less.\n",
        "| in flight | budget | stock req/s | VTR req/s | throughput | stock TTFT ms | VTR TTFT ms"
        " | TTFT | stock ITL ms | VTR ITL ms | ITL | stock KV MiB | VTR KV MiB | KV |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (concurrency, budget), rounds in served.items():
        cells = [str(concurrency), str(budget)]
        for key, scale, digits, vtr_on_top in (
            ("requests_per_s", 1.0, 3, True),
            ("ttft_median_s", 1e3, 0, False),
            ("itl_mean_s", 1e3, 1, False),
            ("kv_peak_bytes", 1 / MIB, 1, True),
        ):
            cells += [f"{middle(rounds, arm, key) * scale:.{digits}f}" for arm in ("stock", "vtr")]
            top, bottom = ("vtr", "stock") if vtr_on_top else ("stock", "vtr")
            cells.append(show(spread(rounds, over(key, top, bottom))))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def footnotes(pairs: list[Pair]) -> str:
    """Return how quiet the machine was, and whether budget 1.0 says what stock says."""
    if not pairs:
        return ""
    foreign = [pair[arm]["foreign_cores"] for pair in pairs for arm in ("stock", "vtr")]
    full = [pair["same_tokens"] for pair in pairs if pair["budget"] == 1.0]
    same = ""
    if full:
        same = f" At budget 1.0, {statistics.fmean(full):.1%} of the answers equal stock's token for token."
    return (
        f"Other processes kept {statistics.median(foreign):.2f} cores busy during a measurement"
        f" (median; greatest {max(foreign):.2f})." + page_faults(pairs) + same
    )


def page_faults(pairs: list[Pair]) -> str:
    """Return how often memory had to be fetched from the kernel: an allocator at odds with its load."""
    if any("page_faults" not in pair["stock"] for pair in pairs):
        return ""
    stock, vtr = (
        statistics.median(pair[arm]["page_faults"] / pair[arm]["requests"] for pair in pairs)
        for arm in ("stock", "vtr")
    )
    return f" A request took {stock:.0f} page faults in stock, {vtr:.0f} in VTR (medians)."


def grouped(pairs: list[Pair], scenario: str) -> dict[tuple[int, float], list[Pair]]:
    """Return a scenario's pairs by concurrency and budget."""
    found: dict[tuple[int, float], list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair["scenario"] == scenario:
            found[pair["concurrency"], pair["budget"]].append(pair)
    return found


def over(key: str, top: str, bottom: str) -> Callable[[Pair], float]:
    """Return the function that divides one arm's ``key`` by the other's."""
    return lambda pair: pair[top][key] / pair[bottom][key]


def middle(rounds: list[Pair], arm: str, key: str, invert: bool = False) -> float:
    """Return the median over the rounds of one number."""
    values = [pair[arm][key] for pair in rounds]
    return statistics.median([1 / value for value in values] if invert else values)


def spread(rounds: list[Pair], number: Callable[[Pair], float]) -> tuple[float, float, float]:
    """Return median, least and greatest over the rounds."""
    values = [number(pair) for pair in rounds]
    return statistics.median(values), min(values), max(values)


def percentile(ordered: list[float], share: float) -> float:
    """Return the nearest-rank percentile of ascending values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def show(values: tuple[float, float, float]) -> str:
    """Return ``median [least, greatest]``."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"
