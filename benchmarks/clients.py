"""Clients that know nothing of budgets, with mixed budgets: ``python -m benchmarks.clients``.

The openai package, ``vllm bench serve`` and guidellm, each unchanged, send the same questions to
one server. What counts as passed is said by both sides: the client reports no error, and the
server counted as many good answers, of several budgets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from benchmarks.arms import ROOT
from benchmarks.record import save
from benchmarks.serving import Served, content
from vtr_vllm import demo

NAME = "demo"
MAX_TOKENS = 8
CONCURRENCY = 8
GUIDELLM_SECONDS = 900
"""It waits without end for data that it cannot read."""
ALIASES = (NAME, f"{NAME}@0.5", f"{NAME}@0.25", f"{NAME}@economy")
"""What a client can ask for that can set nothing but the model's name."""

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"extra_body": {"vtr": {"budget": 0.25}}},
    {"extra_body": {"vtr": {"tier": "balanced"}}},
    {"extra_body": {"vtr": {"schedule": "fastv-0.5"}}},
    {"extra_body": {"vtr": {"max_flops_fraction": 0.4}}},
    {"extra_headers": {"X-VTR-Budget": "0.75"}},
    *({"model": alias} for alias in ALIASES[1:]),
)
"""How the openai package asks, in turn."""

_COUNTED = re.compile(r"^vtr_requests_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass
class Outcome:
    """What one client's run came to, by its own account and by the server's."""

    client: str
    sent: int
    good: int = 0
    errors: list[str] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    """Good answers that the server counted, by tier."""
    absent: str | None = None
    """Why the client could not run at all."""

    @property
    def passed(self) -> bool:
        """Whether all was sent, answered well and of several budgets."""
        return (
            self.absent is None
            and not self.errors
            and self.good == self.sent == sum(self.counted.values())
            and len(self.counted) > 2
        )


@dataclass(frozen=True)
class Setting:
    """What a client's run needs."""

    url: str
    requests: int
    folder: Path
    questions: list[list[dict[str, Any]]]
    guidellm: str | None


def run_openai(setting: Setting) -> Outcome:
    """The asynchronous openai client; every second answer is streamed."""
    outcome = Outcome("openai", setting.requests)
    places = asyncio.Semaphore(CONCURRENCY)

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        asked = {"model": NAME, "max_tokens": MAX_TOKENS, **WAYS[number % len(WAYS)]}
        message = {"role": "user", "content": setting.questions[number]}
        async with places:
            try:
                answer = await client.chat.completions.create(
                    messages=[message],  # type: ignore[list-item]
                    stream=number % 2 == 1,
                    **asked,
                )
                if number % 2:
                    answer = [chunk async for chunk in answer][-1]
                outcome.good += bool(answer.vtr["schedule"])
            except (openai.APIError, AttributeError) as err:
                outcome.errors.append(repr(err))

    async def run() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{setting.url}/v1",
            api_key="none",
            max_retries=0,
            timeout=600,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            await asyncio.gather(*(one(client, number) for number in range(setting.requests)))

    asyncio.run(run())
    return outcome


def run_vllm_bench(setting: Setting) -> Outcome:
    """``vllm bench serve``: the model's name is the only thing that may vary within its run."""
    outcome = Outcome("vllm bench serve", setting.requests)
    data, result = setting.folder / "bench.jsonl", setting.folder / "bench.json"
    data.write_text("".join(json.dumps({"content": each}) + "\n" for each in setting.questions))
    command = [
        *(
            sys.executable,
            "-m",
            "benchmarks.vllm_cli",
            "bench",
            "serve",
            "--backend",
            "openai-chat",
        ),
        *("--base-url", setting.url, "--endpoint", "/v1/chat/completions"),
        *("--model", NAME, "--tokenizer", str(demo.CHECKPOINT), "--temperature", "0"),
        *("--dataset-name", "custom_image", "--dataset-path", str(data)),
        *("--num-prompts", str(setting.requests), "--custom-output-len", str(MAX_TOKENS)),
        *("--max-concurrency", str(CONCURRENCY), "--lora-assignment", "round-robin"),
        *("--save-result", "--save-detailed", "--result-filename", str(result), "--disable-tqdm"),
        *("--lora-modules", *ALIASES),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=direct(setting.url), capture_output=True, text=True
    )
    (setting.folder / "bench.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        outcome.errors.append(f"exit {done.returncode}: {done.stderr[-2000:]}")
        return outcome
    report = json.loads(result.read_text())
    outcome.good = report["completed"]
    outcome.errors += [error for error in report["errors"] if error]
    return outcome


def run_guidellm(setting: Setting) -> Outcome:
    """guidellm: a run has one way of asking, so four runs of a quarter each, side by side."""
    outcome = Outcome("guidellm", setting.requests)
    if setting.guidellm is None:
        outcome.absent = "not installed; name the program with --guidellm PATH"
        return outcome
    ways: list[dict[str, Any]] = [
        {"model": NAME},
        {"model": ALIASES[2]},
        {"model": NAME, "extras": {"body": {"vtr": {"tier": "balanced"}}}},
        {"model": NAME, "extras": {"headers": {"X-VTR-Budget": "0.75"}}},
    ]
    share = setting.requests // len(ways)
    outcome.sent = share * len(ways)
    runs = []
    for number, way in enumerate(ways):
        folder = setting.folder / f"guidellm-{number}"
        folder.mkdir()
        questions = setting.questions[number * share : (number + 1) * share]
        runs.append((folder, _start_guidellm(setting, folder, way, questions)))
    for folder, process in runs:
        try:
            process.wait(GUIDELLM_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode:
            said = (folder / "log").read_text()[-2000:]
            outcome.errors.append(f"exit {process.returncode}: {said}")
            continue
        for bench in json.loads((folder / "report.json").read_text())["benchmarks"]:
            outcome.good += len(bench["requests"]["successful"])
            failed = bench["requests"]["errored"] + bench["requests"]["incomplete"]
            outcome.errors += [str(each["info"]["error"]) for each in failed]
    return outcome


def _start_guidellm(
    setting: Setting, folder: Path, way: dict[str, Any], questions: list[list[dict[str, Any]]]
) -> subprocess.Popen[bytes]:
    data = folder / "data.jsonl"
    # chat messages as they stand: guidellm's image column would want guidellm[vision]
    rows = [{"messages": [{"role": "user", "content": each}]} for each in questions]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    backend = {"kind": "openai_http", "target": setting.url, "max_tokens": MAX_TOKENS, **way}
    command = [
        *(str(setting.guidellm), "run", "--backend", json.dumps(backend)),
        *("--profile", f"kind=concurrent,streams={CONCURRENCY // 4}"),
        *("--constraint", f"kind=max_requests,count={len(rows)}"),
        *("--data", f"kind=json_file,path={data}"),
        *("--tokenizer", f"kind=hf_auto,model={demo.CHECKPOINT}"),
        *("--output", f"kind=json,path={folder / 'report.json'}", "--disable-console-interactive"),
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=direct(setting.url), stdout=log, stderr=subprocess.STDOUT
        )


CLIENTS: dict[str, Callable[[Setting], Outcome]] = {
    "openai": run_openai,
    "vllm-bench": run_vllm_bench,
    "guidellm": run_guidellm,
}


def direct(url: str) -> dict[str, str]:
    """Return the environment of a client that must not ask a proxy for the server."""
    host = httpx.URL(url).host
    return os.environ | {"NO_PROXY": host, "no_proxy": host}


def metrics_of(url: str) -> str:
    """Return a server's ``/metrics``."""
    return httpx.get(f"{url}/metrics", trust_env=False).text


def counted(metrics: str) -> Counter[str]:
    """Return the good answers that a server's ``/metrics`` counts, by tier."""
    found: Counter[str] = Counter()
    for match in _COUNTED.finditer(metrics):
        labels = dict(_LABEL.findall(match["labels"]))
        if labels["outcome"] == "ok":
            found[labels["tier"]] += round(float(match["count"]))
    return found


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    rows = [
        "| client | requests | good | errors | the server counted | |",
        "|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        tiers = ", ".join(f"{count} {tier}" for tier, count in sorted(one.counted.items()))
        said = one.absent or ("passed" if one.passed else "FAILED")
        rows.append(
            f"| {one.client} | {one.sent} | {one.good} | {len(one.errors)} | {tiers} | {said} |"
        )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the clients; 0 if every one of them passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--client", choices=CLIENTS, action="append", help="default all")
    parser.add_argument("--guidellm", default=shutil.which("guidellm"), help="path of the program")
    parser.add_argument("--url", help="a running server of the demo model, instead of an own one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/clients.json"))
    options = parser.parse_args(arguments)
    if options.url:
        outcomes = measure(options.url, options)
    else:
        with Served("demo") as server:
            outcomes = measure(server.url, options)
    told = [vars(one) | {"passed": one.passed} for one in outcomes]
    save(options.out, told, table(outcomes))
    for one in outcomes:
        for error in one.errors[:3]:
            print(f"{one.client}: {error}", file=sys.stderr)
    return 0 if all(one.passed for one in outcomes) else 1


def measure(url: str, options: argparse.Namespace) -> list[Outcome]:
    """Return one outcome a client, one client after the other."""
    folder = Path(tempfile.mkdtemp(prefix="vtr-clients-"))  # stays where a client failed
    samples = [demo.sample("test", number) for number in range(options.requests)]
    questions = [content(each.image, each.question) for each in samples]
    setting = Setting(url, options.requests, folder, questions, options.guidellm)
    outcomes = []
    for name in options.client or CLIENTS:
        before = counted(metrics_of(url))
        outcome = CLIENTS[name](setting)
        outcome.counted = dict(counted(metrics_of(url)) - before)
        print(f"{name}: {outcome.good} of {outcome.sent}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    if not any(outcome.errors for outcome in outcomes):
        shutil.rmtree(folder)
    return outcomes


if __name__ == "__main__":
    raise SystemExit(main())
