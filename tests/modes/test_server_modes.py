"""Two engines behind two API server processes: same tokens, and what is asked of all is summed."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.modes.cases import TOKENS, mixed
from tests.modes.run import Job, run
from tests.running import wait_until
from tests.server.conftest import Server, serve, store_schedules
from tests.vtr_vllm.engine.support import BLOCK, Case

pytestmark = pytest.mark.modes

ENGINES = 2
FLAGS = ("--data-parallel-size", str(ENGINES), "--api-server-count", "2", "--dtype", "float32")


def asked(case: Case) -> Case:
    """The prompt that the chat template makes of a case."""
    text = "<image>\n" * len(case.images) + case.text.replace("<image>", "")
    return Case(f"<s>USER: {text} ASSISTANT:", case.images, case.keep, case.rules)


def body(server: Server, case: Case) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for image in case.images:
        png = io.BytesIO()
        image.save(png, "PNG")
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": case.text.replace("<image>", "")})
    made = {"model": server.model, "messages": [{"role": "user", "content": content}]}
    made |= {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    if case.keep is not None:
        made["vtr"] = {"keep": case.keep, "rules": case.rules, "trace": True}
    return made


async def answers(server: Server, cases: list[Case], engine: int) -> list[dict[str, Any]]:
    """All cases at once, on one of the engines."""
    pinned = {"X-data-parallel-rank": str(engine)}
    async with httpx.AsyncClient(base_url=server.url, timeout=300, headers=pinned) as client:
        sent = [client.post("/v1/chat/completions", json=body(server, case)) for case in cases]
        return [answer.raise_for_status().json() for answer in await asyncio.gather(*sent)]


def metric(server: Server, name: str, labels: str = "") -> float:
    """The sum of a metric over all of its labels but those given."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    lines = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
    return sum(float(line.rpartition(" ")[2]) for line in lines if labels in line)


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("VTR_TEST_MODEL", str(checkpoint))
    schedules = tmp_path / "schedules"
    schedules.mkdir()
    store_schedules(schedules)
    yield from serve(schedules, tmp_path, *FLAGS)


def test_two_engines_and_two_servers(server: Server, checkpoint: Path) -> None:
    """Budgets mixed, each engine asked for everything; an engine by itself says what is right."""
    # Not what is drawn by an image's name, which a server makes of its bytes.
    cases = [c for c in mixed() if len(c.text) < BLOCK * 8 and "random" not in c.rules]
    (plain,) = run(Job(checkpoint, [[asked(case) for case in cases]]), TOKENS)
    traces = []
    for engine in range(ENGINES):
        found = asyncio.run(answers(server, cases, engine))
        assert [answer["choices"][0]["token_ids"] for answer in found] == plain
        traces.append([answer["vtr"].get("trace") for answer in found])
        for case, answer in zip(cases, found, strict=True):
            wanted = sum(case.keep) / len(case.keep) if case.keep and case.images else 1.0
            assert answer["vtr"]["mean_keep"] == pytest.approx(wanted, abs=0.01)
    assert traces[0] == traces[1]
    for trace, case in zip(traces[0], cases, strict=True):
        assert (trace is None) == (case.keep is None)
    assert metric(server, "vtr_requests_total") == ENGINES * len(cases)
    for engine in range(ENGINES):
        assert metric(server, "vllm:request_success_total", f'engine="{engine}"') == len(cases)
    # One server counts, and each engine reduced something in steps of its own.
    wait_until(lambda: metric(server, "vtr_reduced_steps_total") >= ENGINES)
    assert metric(server, "vtr_reduced_steps_total") <= ENGINES * len(cases)
