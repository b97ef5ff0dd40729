"""Elastic budgets under an open-loop load: ``python -m benchmarks.elastic --help``.

One server, a model of real proportions with dummy weights, and a Poisson load at multiples of what
the server can take at full budget. Every rate is sent three times, with the same arrivals: all
requests at budget 1.0, all at 0.25, and all at ``auto`` under an objective for the time to first
token. A client that has no first token after ten objectives gives up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure

from benchmarks.arms import threading
from benchmarks.open_loop import MODEL, Client, summary
from benchmarks.record import measured_with, save, say, write
from benchmarks.serving import QUIET, Served
from benchmarks.shapes import default_dtype
from benchmarks.worker import Machine
from tests.tiny import TinyShape, write_model_files
from vtr_server.policy.elastic import HOLD

SHAPE = TinyShape(
    layers=20,
    hidden=512,
    heads=8,
    kv_heads=2,
    head_dim=64,
    mlp=3072,
    vocab=8000,
    image=336,
    patch=14,
    tower_layers=8,
    tower_hidden=192,
    tower_heads=3,
    tower_mlp=768,
)
"""Prefill of its 576 vision tokens dominates, the tower has 4% of it as in LLaVA-1.5-7B, and two
cores serve about three requests a second."""

POLICIES: dict[str, float | str] = {"1.0": 1.0, "0.25": 0.25, "auto": "auto"}
COLORS = {"1.0": "#000000", "0.25": "#0072b2", "auto": "#d55e00"}
OBJECTIVE = 3.0
"""Times the unloaded time to first token at full budget."""
INTERVAL = 0.25
"""Seconds between decisions, about a quarter of the objective."""
PATIENCE = 10.0
"""Objectives."""
CONCURRENCY = 8
STEP_TOKENS = 2048
"""vLLM's own default for a server; three prompts a step."""
IN_FLIGHT = 4096


class Server(Served):
    """``vtr serve`` of the shape."""

    def __init__(self, model: Path, settings: str, dtype: str, threads: int | None) -> None:
        flags = {
            "--served-model-name": MODEL,
            "--load-format": "dummy",
            "--dtype": dtype,
            "--max-model-len": 1024,
            "--max-num-batched-tokens": STEP_TOKENS,
            "--max-num-seqs": 32,
            "--block-size": 32,
            "--mm-processor-cache-gb": 0,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        words += ["--enforce-eager", "--disable-uvicorn-access-log"]
        environment = {**QUIET, **threading(threads)}
        super().__init__(model, words, settings=settings, environment=environment)

    def busy(self) -> float:
        """CPU seconds of the server's processes so far."""
        try:
            parent = psutil.Process(self.pid)
            times = [each.cpu_times() for each in [parent, *parent.children(recursive=True)]]
        except psutil.NoSuchProcess as err:
            raise RuntimeError(f"the server ended; its log ends with:\n{self.tail()}") from err
        return sum(each.user + each.system for each in times)


async def baseline(client: Client, seconds: float) -> dict[str, float]:
    """Return the unloaded time to first token and the requests a second at full budget."""
    await client.in_turn(0.25, 3)
    await client.closed(1.0, CONCURRENCY, min(seconds, 10))  # to warm up
    alone = [each.ttft for each in await client.in_turn(1.0, 10)]
    start = time.perf_counter()
    answers = await client.closed(1.0, CONCURRENCY, seconds)
    wall = time.perf_counter() - start
    failed = [each.error for each in answers if each.error or each.ttft is None]
    if failed:
        raise RuntimeError(f"{len(failed)} requests of the closed loop failed, one: {failed[0]}")
    return {
        "unloaded_ttft_s": statistics.median(each for each in alone if each is not None),
        "capacity_rps": len(answers) / wall,
    }


async def cell(
    server: Server, client: Client, policy: str, load: float, found: dict, seconds: float
) -> dict[str, Any]:
    """Return what one policy made of one load; the controller begins at its top level."""
    objective, lead_in = found["objective_s"], found["meta"]["lead_in"]
    await client.idle()
    await asyncio.sleep(HOLD * objective + 10 * INTERVAL + 1)
    rate = load * found["capacity_rps"]
    machine = Machine(server.busy)
    sent = await client.open(POLICIES[policy], rate, lead_in + seconds, seed=round(1000 * load))
    foreign = machine.facts()["foreign_cores"]
    facts = summary([a for at, a in sent if at >= lead_in], seconds, objective, client.patience)
    if first := [answer for at, answer in sent if at < lead_in]:
        facts["lead_in"] = summary(first, lead_in, objective, client.patience)
    return {"policy": policy, "load": load, "rate_rps": rate, "foreign_cores": foreign} | facts


async def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return the whole results file; it is written anew after every cell."""
    model = scratch / "model"
    dtype = options.dtype or default_dtype()
    write_model_files(model, SHAPE, dtype)
    limits = f"[limits]\nin_flight = {IN_FLIGHT}\n"
    found: dict[str, Any] = {
        "meta": measured_with(options) | {"dtype": dtype, "threads": options.threads}
    }
    found["meta"] |= {"seconds": options.seconds, "lead_in": options.lead_in}
    found["meta"] |= {"max_num_batched_tokens": STEP_TOKENS, "interval_seconds": INTERVAL}
    with Server(model, limits, dtype, options.threads) as server:
        client = Client(server.url, SHAPE.image, 600)
        found |= await baseline(client, min(60, options.seconds))
    found["objective_s"] = options.objective or OBJECTIVE * found["unloaded_ttft_s"]
    say(
        f"unloaded TTFT {found['unloaded_ttft_s']:.3f} s, capacity {found['capacity_rps']:.2f}"
        f" requests/s at full budget, objective {found['objective_s']:.3f} s"
    )
    if "auto" in options.policies:
        limits += f"[elastic]\nttft_seconds = {found['objective_s']:.6f}\n"
        limits += f"interval_seconds = {INTERVAL}\n"
    found["cells"] = []
    with Server(model, limits, dtype, options.threads) as server:
        client = Client(server.url, SHAPE.image, PATIENCE * found["objective_s"])
        for budget in (1.0, 0.25):
            await client.closed(budget, CONCURRENCY, 5)  # to warm up
        for load in options.rates:
            for policy in options.policies:
                row = await cell(server, client, policy, load, found, options.seconds)
                found["cells"].append(row)
                write(options.out, found)
                say(
                    f"{load:g}x {policy}: p95 {row['ttft_p95_s'] or 0:.2f} s, {row['in_time'] or 0:.0%}"
                    f" of {row['requests']} in time, mean budget {row['mean_budget'] or 0:.2f}, {row['errors']} errors,"
                    f" others on {row['foreign_cores']:.2f} cores"
                )
    return found


def table(found: dict[str, Any]) -> str:
    """Return the results as markdown."""
    meta, objective = found["meta"], found["objective_s"]
    lines = [
        f"Measured {meta['date']} on {meta['cpu']}, {meta['cores']} cores, commit"
        f" {meta['commit']}, {meta['dtype']}; {meta['seconds']:g} s a cell after"
        f" {meta['lead_in']:g} s of the same load. Capacity at full budget"
        f" {found['capacity_rps']:.2f} requests/s, time to first token without load"
        f" {found['unloaded_ttft_s']:.3f} s, objective {objective:.3f} s. Other processes kept at"
        f" most {max(row['foreign_cores'] for row in found['cells']):.2f} cores busy.",
        "",
        "| load | requests/s | budget | TTFT p50 s | TTFT p95 s | in time | goodput, requests/s"
        " | mean budget spent | gave up | errors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["cells"]:
        times = [_seconds(row[key], PATIENCE * objective) for key in ("ttft_p50_s", "ttft_p95_s")]
        spent = "" if row["mean_budget"] is None else f"{row['mean_budget']:.2f}"
        in_time = "" if row["in_time"] is None else f"{row['in_time']:.1%}"
        lines.append(
            f"| {row['load']:g}x | {row['rate_rps']:.2f} | {row['policy']} | {' | '.join(times)}"
            f" | {in_time} | {row['goodput_rps']:.2f} | {spent} | {row['gave_up']}"
            f" | {row['errors']} |"
        )
    return "\n".join(lines)


def _seconds(value: float | None, patience: float) -> str:
    """Show a time; as a bound where clients gave up, empty where no request came."""
    if value is None:
        return ""
    return f"> {patience:.1f}" if value >= patience else f"{value:.2f}"


def plot(found: dict[str, Any]) -> Figure:
    """Draw p95, goodput and the budget spent over the load, a line a policy."""
    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    rows = sorted(found["cells"], key=lambda row: row["load"])
    loads = sorted({row["load"] for row in rows})
    for axes, key, label in zip(
        panels,
        ("ttft_p95_s", "goodput_rps", "mean_budget"),
        ("TTFT p95, s", "goodput, requests/s", "mean budget spent"),
        strict=True,
    ):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            own = [row for row in rows if row["policy"] == policy and row[key] is not None]
            x, y = [row["load"] for row in own], [row[key] for row in own]
            axes.plot(x, y, "o-", color=COLORS[policy], label=policy, linewidth=1.6, markersize=5)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[0].axhline(found["objective_s"], color="#6e6e6e", linestyle="--", label="objective")
    panels[0].set_yscale("log")
    panels[0].legend(title="budget", ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    offered = [load * found["capacity_rps"] for load in loads]
    panels[1].legend(handles=panels[1].plot(loads, offered, ":", color="#6e6e6e", label="offered"))
    panels[1].set_ylim(bottom=0)
    panels[2].set_ylim(0, 1.05)
    panels[2].set_xlabel("load, times the capacity at full budget")
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of each cell; default 120")
    parser.add_argument("--lead-in", type=float, default=30, help="seconds before, not counted")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1, 2, 3])
    parser.add_argument("--policies", choices=[*POLICIES], nargs="+", default=[*POLICIES])
    parser.add_argument("--objective", type=float, help="seconds; default 3x the unloaded TTFT")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/elastic.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/assets/elastic.png"))
    parser.add_argument("--threads", type=int, help="CPU threads of the engine; default vLLM's")
    parser.add_argument("--dtype", help="default bfloat16; float32 on a CPU without AVX-512 BF16")
    parser.add_argument("--table", type=Path, help="only draw and print a results file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, then write the results, the table and the plot."""
    options = parse(arguments)
    if options.table:
        found = json.loads(options.table.read_text())
        print(table(found))
    else:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # a connection a request
        with tempfile.TemporaryDirectory(prefix="vtr-elastic-") as scratch:
            found = asyncio.run(measure(options, Path(scratch)))
        save(options.out, found, table(found))
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(found).savefig(options.plot, dpi=160)


if __name__ == "__main__":
    main()
