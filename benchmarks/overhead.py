"""Our server at budget 1.0 beside stock ``vllm serve``: ``python -m benchmarks.overhead``.

Three servers of one model run side by side and get the same requests in turn, a round each, in an
order that turns from round to round:

- ``stock``: vLLM's own API server, no plugin, no class of ours;
- ``engine``: the same API server on an engine with our worker and scheduler;
- ``vtr``: ``vtr serve``, which is that engine behind our routes.

vtr over stock is what an operator sees; vtr over engine is what the routes cost, engine over
stock what the plugin costs in the engine where nothing is reduced.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.arms import SETTLE_S, threading
from benchmarks.record import measured_with, save, say, write
from benchmarks.report import measured
from benchmarks.serving import QUIET, Served, content
from benchmarks.shapes import Shape, make_request, make_shape
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS

ARMS = ("stock", "engine", "vtr")
PAIRS = (("vtr", "stock"), ("vtr", "engine"), ("engine", "stock"))
QUESTION = "What is this?"
STOCK = ("-m", "benchmarks.vllm_cli", "serve")
OURS = ("--worker-cls", WORKER_CLS, "--scheduler-cls", SCHEDULER_CLS)


class Arm(Served):
    """One of the three servers, healthy inside the block."""

    def __init__(self, name: str, shape: Shape, threads: int) -> None:
        self.name = name
        start = ("-m", "vtr_vllm.cli", "serve") if name == "vtr" else STOCK
        flags = server_flags(shape)
        environment = {**os.environ, **QUIET, **threading(threads)}
        environment.pop("VLLM_PLUGINS", None)
        if name == "stock":
            environment["VLLM_PLUGINS"] = ""
        if name == "engine":  # unset, vLLM loads every general plugin and no endpoint plugin
            flags += OURS
        log = Path(tempfile.mkdtemp(prefix="vtr-overhead-")) / f"{name}.log"
        self._start([*start, str(shape.model), *flags], environment, log)

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time so far of the API process, and of the engine's processes."""
        front = psutil.Process(self.pid)
        spent = [each.cpu_times() for each in (front, *front.children(recursive=True))]
        used = [each.user + each.system for each in spent]
        return used[0], sum(used[1:])


def server_flags(shape: Shape) -> list[str]:
    """Return the flags that every arm gets."""
    flags = ["--served-model-name", "bench", "--no-enable-log-requests"]
    flags += ["--uvicorn-log-level", "warning", "--disable-log-stats", "--enforce-eager"]
    flags += ["--load-format", shape.load_format, "--dtype", shape.dtype, "--block-size", "32"]
    flags += ["--max-model-len", str(shape.max_model_len), "--max-num-seqs", "32"]
    flags += ["--max-num-batched-tokens", str(shape.max_num_batched_tokens)]
    return [*flags, "--mm-processor-cache-gb", "0"]


def body(shape: Shape, index: int, tokens: int) -> bytes:
    """Return a streamed chat request with an image that no other has."""
    found = make_request(shape.name, index)
    message = {"role": "user", "content": content(found["multi_modal_data"]["image"], QUESTION)}
    asked = {"model": "bench", "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return json.dumps(asked | {"stream": True, "messages": [message]}).encode()


async def load(url: str, bodies: list[bytes], concurrency: int) -> tuple[float, list[float]]:
    """Send all bodies, ``concurrency`` at once; return wall seconds and each one's first token's.

    Raises RuntimeError for any answer that is not good and whole.
    """
    waiting, firsts = iter(bodies), []
    headers = {"Content-Type": "application/json"}

    async def one(session: aiohttp.ClientSession) -> None:
        for each in waiting:
            start, first, last = time.perf_counter(), None, b""
            async with session.post(
                f"{url}/v1/chat/completions", data=each, headers=headers
            ) as answer:
                async for line in answer.content:
                    if first is None and b'"content":"' in line and b'"role"' not in line:
                        first = time.perf_counter() - start
                    last = line.strip() or last
            if first is None or last != b"data: [DONE]":
                raise RuntimeError(f"{url} answered {answer.status}, its end {last[-500:]!r}")
            firsts.append(first)

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one(session))
        return time.perf_counter() - start, firsts


def measure(arm: Arm, bodies: list[bytes], concurrency: int) -> dict[str, float]:
    """Return one arm's numbers for one round."""
    time.sleep(SETTLE_S)
    front, engine = arm.cpu_seconds()
    wall, firsts = asyncio.run(load(arm.url, bodies, concurrency))
    front_end, engine_end = arm.cpu_seconds()
    return {
        "requests_per_s": len(bodies) / wall,
        "ttft_p50_s": statistics.median(firsts),
        "front_cpu_s": (front_end - front) / len(bodies),
        "engine_cpu_s": (engine_end - engine) / len(bodies),
    }


def run_shape(shape: Shape, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one round's numbers after another, for every concurrency."""
    with contextlib.ExitStack() as stack:
        arms = [stack.enter_context(Arm(name, shape, options.threads)) for name in ARMS]
        say(f"{shape.name}: {len(arms)} servers are up")
        first = 0
        for number in range(-1, options.rounds):
            for concurrency in options.concurrency:
                count = options.requests if number >= 0 else 2 * concurrency
                bodies = [body(shape, first + i, options.tokens) for i in range(count)]
                first += count
                turn = number % len(arms)
                found = {
                    arm.name: measure(arm, bodies, concurrency)
                    for arm in (*arms[turn:], *arms[:turn])
                }
                if number >= 0:  # the round before the first warms up
                    say(f"{shape.name} round {number + 1} c={concurrency}: {brief(found)}")
                    yield {"shape": shape.name, "concurrency": concurrency, **found}


def brief(found: dict[str, Any]) -> str:
    """Return a round in one line."""
    rates = ", ".join(f"{name} {found[name]['requests_per_s']:.2f}/s" for name in ARMS)
    return f"{rates}; load average {os.getloadavg()[0]:.1f}"


def table(rounds: list[dict[str, Any]]) -> str:
    """Return medians of the rounds' ratios, with the middle half of them."""
    lines = [
        "| shape | in flight | | requests/s | p50 TTFT | front-end CPU ms/request | engine CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, concurrency in dict.fromkeys((r["shape"], r["concurrency"]) for r in rounds):
        mine = [r for r in rounds if (r["shape"], r["concurrency"]) == (shape, concurrency)]
        start = f"| {shape} | {concurrency} |"
        for arm in ARMS:
            cells = [statistics.median(r[arm][key] for r in mine) for key in mine[0][arm]]
            lines.append(
                f"{start} {arm} | {cells[0]:.2f} | {cells[1] * 1e3:.1f} ms"
                f" | {cells[2] * 1e3:.2f} | {cells[3] * 1e3:.1f} |"
            )
        for top, bottom in PAIRS:
            ratios = [spread([r[top][key] / r[bottom][key] for r in mine]) for key in mine[0][top]]
            lines.append(f"{start} {top} / {bottom} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return ``median [lower quartile, upper quartile]``."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=("demo", "half-b"), action="append", help="default both")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=32, help="of each arm in each round")
    parser.add_argument("--tokens", type=int, default=8, help="output tokens of a request")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each engine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"meta": measured_with(options), "rounds": []}
    with tempfile.TemporaryDirectory(prefix="vtr-overhead-models-") as scratch:
        for name in options.shape or ["demo", "half-b"]:
            for found in run_shape(make_shape(name, Path(scratch), None, False), options):
                results["rounds"].append(found)
                write(options.out, results)
    heading = measured(results["meta"], "rounds", "requests", "tokens", "threads")
    text = f"{heading}\n\n{table(results['rounds'])}"
    save(options.out, results, text)


if __name__ == "__main__":
    main()
