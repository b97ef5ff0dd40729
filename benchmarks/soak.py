"""A long run at saturation: ``python -m benchmarks.soak --help``.

Clients that never rest send requests of the demo world with random budgets, streamed or not; some
leave in the middle of a stream, some before the answer, some ask for what must be refused. It
passes when every whole answer equals the answer that the same request got alone, memory stays
flat, every KV block is free at the end, and the server's own counts agree with the clients'.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.record import measured_with, say, write
from benchmarks.serving import Served, content
from vtr_vllm import demo

ASKS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"budget": 1.0},
    {"budget": 0.75},
    {"budget": 0.5},
    {"budget": 0.3},
    {"budget": 0.25},
    {"tier": "economy"},
    {"tier": "lossless"},
    {"schedule": "fastv-0.5"},
    {"schedule": "pdrop-0.5"},
    {"max_flops_fraction": 0.4},
    {"budget": 0.25, "trace": True},
)
REFUSED: tuple[dict[str, Any], ...] = (
    {"budget": 7},
    {"tier": "none"},
    {"budgit": 0.5},
    {"keep": [0.5], "rules": []},
)
TOKENS = 6
CLEAR = 0.01
"""Log-probability between the best and the next token, below which rounding may decide."""
LEAVES_STREAM, LEAVES_EARLY, ASKS_BADLY, STREAMS = 0.08, 0.04, 0.04, 0.5
SAMPLE_SECONDS = 5.0
REST_SECONDS = 1.0
MEMORY_GROWTH = 0.03
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Case:
    """A request and the answer that it got alone."""

    body: dict[str, Any]
    text: str
    kept: tuple[int, ...]


@dataclass
class Seen:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    vision_tokens: int = 0
    """Of whole answers."""
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """When, and resident bytes of all the server's processes."""


def bodies(scenes: int) -> list[dict[str, Any]]:
    """Return requests of every way of asking over the first scenes of the test split."""
    found = []
    for index in range(scenes):
        drawn = demo.sample("test", index)
        body = {
            "model": "demo",
            "max_tokens": TOKENS,
            "temperature": 0,
            "messages": [{"role": "user", "content": content(drawn.image, drawn.question)}],
        }
        found += [body if ask is None else body | {"vtr": ask} for ask in ASKS]
    return found


async def alone(http: httpx.AsyncClient, scenes: int) -> list[Case]:
    """Return the cases, each answered with nothing beside it; unclear ones are left out."""
    cases = []
    for body in bodies(scenes):
        answer = await http.post(CHAT, json=body | {"logprobs": True, "top_logprobs": 2})
        answer.raise_for_status()
        found = answer.json()
        choice = found["choices"][0]
        gaps = [
            token["top_logprobs"][0]["logprob"] - token["top_logprobs"][1]["logprob"]
            for token in choice["logprobs"]["content"]
        ]
        if min(gaps) >= CLEAR:
            kept = tuple(found["vtr"]["kept_per_layer"])
            cases.append(Case(body, choice["message"]["content"], kept))
    return cases


async def client(
    http: httpx.AsyncClient, cases: list[Case], seen: Seen, end: float, seed: int
) -> None:
    """Send one request after the other until ``end``; one that gets no answer is a wrong one."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        try:
            await _ask(http, draw.choice(cases), seen, draw)
        except httpx.TransportError as err:
            seen.outcomes["no answer"] += 1
            seen.wrong.append(repr(err))
            await asyncio.sleep(REST_SECONDS)  # a server that is gone refuses at once


async def _ask(http: httpx.AsyncClient, case: Case, seen: Seen, draw: random.Random) -> None:
    luck = draw.random()
    if luck < ASKS_BADLY:
        answer = await http.post(CHAT, json=case.body | {"vtr": draw.choice(REFUSED)})
        if 400 <= answer.status_code < 500:
            seen.outcomes["refused"] += 1
        else:
            seen.outcomes["wrong status"] += 1
            seen.wrong.append(f"status {answer.status_code} for what must be refused")
    elif luck < ASKS_BADLY + LEAVES_EARLY:
        await _leave_early(http, case, seen, draw.uniform(0, 0.3))
    elif draw.random() < STREAMS:
        await _streamed(http, case, seen, leave=luck > 1 - LEAVES_STREAM)
    else:
        answer = await http.post(CHAT, json=case.body)
        _check(answer.status_code, answer.text, case, seen)


async def _leave_early(http: httpx.AsyncClient, case: Case, seen: Seen, after: float) -> None:
    try:
        async with asyncio.timeout(after):
            answer = await http.post(CHAT, json=case.body)
    except TimeoutError:
        seen.outcomes["left"] += 1
        return
    _check(answer.status_code, answer.text, case, seen)


async def _streamed(http: httpx.AsyncClient, case: Case, seen: Seen, leave: bool) -> None:
    body = case.body | {"stream": True}
    text, kept = "", None
    async with http.stream("POST", CHAT, json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            _check(answer.status_code, (await answer.aread()).decode(), case, seen)
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                seen.outcomes["stream error"] += 1
                seen.wrong.append(f"stream error {chunk['error']}")
                return
            for choice in chunk.get("choices", ()):
                text += choice["delta"].get("content") or ""
            kept = chunk["vtr"]["kept_per_layer"] if "vtr" in chunk else kept
            if leave and text:
                seen.outcomes["left"] += 1
                return
    _compare(text, kept, case, seen)


def _check(status: int, text: str, case: Case, seen: Seen) -> None:
    if status != httpx.codes.OK:
        seen.outcomes[f"status {status}"] += 1
        seen.wrong.append(f"status {status}: {text[:300]}")
        return
    found = json.loads(text)
    _compare(found["choices"][0]["message"]["content"], found["vtr"]["kept_per_layer"], case, seen)


def _compare(text: str, kept: list[int] | None, case: Case, seen: Seen) -> None:
    seen.outcomes["ok"] += 1
    seen.vision_tokens += case.kept[0] if "vtr" not in case.body else 144
    if text != case.text or tuple(kept or ()) != case.kept:
        seen.wrong.append(f"{text!r}, alone {case.text!r}; {case.body.get('vtr')}; {kept}")


async def watch_memory(pid: int, seen: Seen, end: float) -> None:
    """Note the memory of a process and its children until ``end``, or until it is gone."""
    while time.monotonic() < end:
        try:
            parent = psutil.Process(pid)
        except psutil.NoSuchProcess:
            seen.wrong.append("the server ended")
            return
        resident = 0
        for process in [parent, *parent.children(recursive=True)]:
            try:
                resident += process.memory_full_info().uss
            except psutil.NoSuchProcess:
                continue
        seen.memory.append((time.monotonic(), resident))
        await asyncio.sleep(SAMPLE_SECONDS)


async def counts(http: httpx.AsyncClient) -> dict[str, float]:
    """Return the server's own counts, by series."""
    text = (await http.get("/metrics")).text
    found = re.findall(r"^(vtr_\w+(?:{[^}]*})?|vllm:num_requests_\w+{[^}]*}) (\S+)$", text, re.M)
    return {name: float(value) for name, value in found}


def total(series: dict[str, float], name: str, label: str = "") -> float:
    """Return the sum of a metric's series that carry a label."""
    return sum(v for k, v in series.items() if re.split(r"[{ ]", k)[0] == name and label in k)


class StillInFlight(RuntimeError):
    """The server does not come to rest."""


async def settled(http: httpx.AsyncClient) -> dict[str, float]:
    """Return the counts once nothing is in flight and the KV report is of that moment."""
    for _ in range(60):
        found = await counts(http)
        if (
            total(found, "vtr_in_flight_requests") == 0
            and total(found, "vllm:num_requests_running") == 0
        ):
            await asyncio.sleep(5)
            return await counts(http)
        await asyncio.sleep(0.5)
    raise StillInFlight("requests are in flight half a minute after the last client left")


def verdicts(seen: Seen, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Return each criterion: whether it holds, and the numbers behind it.

    None holds of what nothing is known: a series that the server does not report, no whole answer,
    too few samples of the memory.
    """

    def grew(name: str, label: str = "") -> int:
        return round(total(after, name, label) - total(before, name, label))

    ok, left = seen.outcomes["ok"], seen.outcomes["left"]
    served = {name: grew("vtr_requests_total", f'outcome="{name}"') for name in _OUTCOMES}
    tokens = grew("vtr_vision_tokens_total")
    blocks = {
        state: total(after, "vtr_kv_blocks", f'"{state}"')
        for state in ("total", "free", "held", "saved")
    }
    return {
        "no wrong answer": (not seen.wrong, seen.wrong[:5]),
        "memory is flat": flat(seen.memory),
        "KV blocks are free": (
            blocks["held"] == 0 and blocks["free"] == blocks["total"] > 0,
            blocks,
        ),
        "ok as the clients counted": (0 < ok <= served["ok"] <= ok + left, (ok, served)),
        "refused as the clients counted": (
            served["refused"] + served["client_error"] == seen.outcomes["refused"],
            served,
        ),
        "all are counted": (
            ok + seen.outcomes["refused"]
            <= sum(served.values())
            <= ok + left + seen.outcomes["refused"],
            (dict(seen.outcomes), served),
        ),
        "vision tokens as counted": (
            0 < seen.vision_tokens <= tokens <= seen.vision_tokens + 144 * left,
            (seen.vision_tokens, tokens),
        ),
        "no error": (
            sum(served.values()) > 0 and served["error"] == served["timeout"] == 0,
            served,
        ),
    }


def flat(memory: list[tuple[float, int]]) -> tuple[bool, str]:
    """Return whether the last third of a run needs no more than an earlier one, and the numbers."""
    begin, end = (memory[0][0], memory[-1][0]) if memory else (0.0, 0.0)
    third = (end - begin) / 3
    early = [m for t, m in memory if begin + third / 2 <= t < begin + 1.5 * third]
    late = [m for t, m in memory if t >= end - third]
    if not early or not late:
        return False, f"{len(memory)} samples of {SAMPLE_SECONDS:g} s: the run is too short to say"
    growth = statistics.median(late) / statistics.median(early) - 1
    return (
        growth < MEMORY_GROWTH,
        f"{growth:+.2%} from {statistics.median(early) / 2**20:.0f} MiB",
    )


_OUTCOMES = ("ok", "client_error", "refused", "aborted", "error", "timeout")


async def soak(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Run it and return what came out."""
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(
        base_url=served.url, timeout=300, limits=limits, trust_env=False
    ) as http:
        cases = await alone(http, options.scenes)
        say(f"{len(cases)} of {options.scenes * len(ASKS)} requests are clear when sent alone")
        before = await settled(http)
        end = time.monotonic() + options.minutes * 60
        tasks = [client(http, cases, seen, end, seed) for seed in range(options.clients)]
        begin = time.monotonic()
        await asyncio.gather(watch_memory(served.pid, seen, end), *tasks)
        seconds = time.monotonic() - begin
        try:
            after = await settled(http)
        except (httpx.TransportError, StillInFlight) as err:  # what was seen is still told
            seen.wrong.append(repr(err))
            after = {}
    found = verdicts(seen, before, after)
    return {
        "machine": measured_with(options),
        "minutes": seconds / 60,
        "clients": options.clients,
        "outcomes": dict(seen.outcomes),
        "requests_per_second": sum(seen.outcomes.values()) / seconds,
        "criteria": {
            name: {"holds": holds, "numbers": numbers} for name, (holds, numbers) in found.items()
        },
        "memory_mib": [round(m / 2**20, 1) for _, m in seen.memory][
            :: max(1, len(seen.memory) // 60)
        ],
    }


def main() -> int:
    """Run the soak; status 1 if a criterion does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=25, help="images; each is asked in all ways")
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"))
    options = parser.parse_args()
    flags = ["--max-num-seqs", "16", "--disable-uvicorn-access-log"]
    with Served("demo", flags) as served:
        found = asyncio.run(soak(served, options))
    write(options.out, found)
    for name, result in found["criteria"].items():
        say(f"{'holds' if result['holds'] else 'FAILS'}: {name} {result['numbers']}")
    say(f"{found['outcomes']}, {found['requests_per_second']:.1f} requests/s; wrote {options.out}")
    return 0 if all(result["holds"] for result in found["criteria"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
