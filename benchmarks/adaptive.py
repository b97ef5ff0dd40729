"""A family through the server: ``python -m benchmarks.adaptive --schedules FOLDER``.

The demo's held-out questions with ``adapt`` at each budget, through HTTP, and once more each with the one schedule
of that budget: what the family promised beside what was spent, scores, and the time that a choice takes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.record import measured_with, say, write
from benchmarks.serving import Served, content
from vtr_vllm import demo
from vtr_vllm.adaptive import Prompt, ScheduleFamily
from vtr_vllm.adaptive.family import FILE
from vtr_vllm.search.statistics import bootstrap_interval

BUDGETS = (0.25, 0.1875, 0.125)
IN_FLIGHT = 16
CHOICES = 2000  # that are timed


async def ask(
    client: httpx.AsyncClient, sample: demo.Sample, vtr: dict[str, Any]
) -> dict[str, Any]:
    """One question; what the answer says of itself, and whether it is right."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": content(sample.image, sample.question)}],
        "temperature": 0,
        "max_tokens": 4,
        "vtr": vtr,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"{sample.question} with {vtr}: {answer.status_code} {answer.text}")
    found = answer.json()
    said = found["choices"][0]["message"]["content"].strip()
    return found["vtr"] | {"right": float(said == sample.answer)}


async def ask_all(
    url: str, split: str, questions: int, vtr: dict[str, Any]
) -> list[dict[str, Any]]:
    """All questions of a split, some at a time."""
    room = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:

        async def one(index: int) -> dict[str, Any]:
            async with room:
                return await ask(client, demo.sample(split, index), vtr)

        return list(await asyncio.gather(*map(one, range(questions))))


def row(budget: float, adapt: bool, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What one run came to."""
    rights = [each["right"] for each in found]
    low, high = bootstrap_interval(rights)
    spent = statistics.fmean(each["mean_keep"] for each in found)
    promised = found[0]["adaptive"]["promised"] if adapt else budget
    return {
        "budget": budget,
        "adapt": adapt,
        "n": len(found),
        "promised": promised,
        "spent": spent,
        "off": spent / promised - 1,
        "score": statistics.fmean(rights),
        "low": low,
        "high": high,
        "mix": dict(sorted(Counter(each["schedule"] for each in found).items())),
    }


def choice_seconds(family: ScheduleFamily, budget: float) -> float:
    """Median time of one choice, features included, of prompts of 128 text tokens."""
    prompts = [Prompt(tuple(range(n, n + 128)), (576,)) for n in range(CHOICES)]
    family.choose(prompts[0], budget)
    taken = []
    for prompt in prompts:
        begun = time.perf_counter()
        family.choose(prompt, budget)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def table(found: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| budget | | promised | spent | off | score | 95% |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for each in found["rows"]:
        lines.append(
            f"| {each['budget']:g} | {'adapt' if each['adapt'] else 'one schedule'} |"
            f" {each['promised']:.4f} | {each['spent']:.4f} | {100 * each['off']:+.1f}% |"
            f" {100 * each['score']:.1f} | {100 * each['low']:.1f}-{100 * each['high']:.1f} |"
        )
    return "\n".join([*lines, "", f"a choice: {1e3 * found['choice_seconds']:.3f} ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=Path, required=True, help="folder with a family in it")
    parser.add_argument("--split", default="test", choices=("test", "test-hard"))
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    family = ScheduleFamily.load(options.schedules / FILE)
    rows = []
    flags = ("--schedules", str(options.schedules.resolve()), "--dtype", "float32")
    with Served("demo", flags) as server:
        for budget in BUDGETS:
            for adapt in (True, False):
                vtr = {"budget": budget, "adapt": adapt}
                found = asyncio.run(ask_all(server.url, options.split, options.questions, vtr))
                rows.append(row(budget, adapt, found))
                say(f"budget {budget:g}, adapt {adapt}: {100 * rows[-1]['score']:.1f}")
    done = {
        "machine": measured_with(options),
        "split": options.split,
        "choice_seconds": choice_seconds(family, BUDGETS[0]),
        "rows": rows,
    }
    if options.json:
        write(options.json, done)
    print(table(done))


if __name__ == "__main__":
    main()
