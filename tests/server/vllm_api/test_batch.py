"""Batch files: every line gets its own answer or its own error."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from tests.server.bad_input import CHAT, COMPLETION, chat_body
from tests.server.conftest import NAME, Server, checkpoint
from tests.server.vllm_api.lines import line
from vtr_server.jobs.store import JobStore
from vtr_server.vllm_api import batch
from vtr_server.vllm_api.batch import answer_lines, main
from vtr_server.vllm_api.batch_files import BatchInput, BatchOutput
from vtr_vllm.errors import ConfigurationError, EngineNotReady


@pytest.mark.parametrize(
    ("given_in", "given_out", "said"),
    [
        ("missing.jsonl", "out.jsonl", "cannot be read"),
        ("latin1.jsonl", "out.jsonl", "line 1 of the batch file is not UTF-8"),
        ("good.jsonl", "nowhere/out.jsonl", "name a file in a folder that is there"),
    ],
)
def test_files_are_looked_at_before_the_engine_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given_in: str, given_out: str, said: str
) -> None:
    (tmp_path / "good.jsonl").write_text(line("a"))
    (tmp_path / "latin1.jsonl").write_bytes(b"\xe9\n")
    files = ["-i", str(tmp_path / given_in), "-o", str(tmp_path / given_out)]
    assert main([*files, "--model", str(checkpoint())]) == 2
    assert said in capsys.readouterr().err


def test_what_only_the_engine_tells_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise ConfigurationError("reuse is true, and the engine caches no prefixes")

    monkeypatch.setattr(batch, "_run", refuse)
    (tmp_path / "in.jsonl").write_text(line("a"))
    files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    assert main([*files, "--model", str(checkpoint())]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "vtr batch: reuse is true, and the engine caches no prefixes"


def mixed(name: str) -> str:
    """Lines that ask in several ways, and between them lines that are refused."""
    chat = chat_body(name)
    asked = [
        line("full", **chat),
        line("budget", **chat, vtr={"budget": 0.25}),
        line("too-much", **chat, vtr={"budget": 7}),
        line("alias", **chat | {"model": f"{name}@0.75"}),
        line("schedule", **chat, vtr={"schedule": "fastv-0.5"}),
        "{nope",
        line("no-such", **chat, vtr={"schedule": "nosuch"}),
        line("text", COMPLETION, model=name, prompt="what color is", max_tokens=3),
        line("no-messages", model=name),
        line("other-model", **chat | {"model": "nosuch"}),
    ]
    return "\n".join(asked) + "\n\n"


def check_mixed(outputs: list[dict[str, Any]]) -> None:
    """What ``mixed`` must come to, in the order of its lines."""
    assert [output["custom_id"] for output in outputs] == [
        *("full", "budget", "too-much", "alias", "schedule", "line-6"),
        *("no-such", "text", "no-messages", "other-model"),
    ]
    by_id = {output["custom_id"]: output for output in outputs}
    good = {
        key: output["response"]["body"]["vtr"]
        for key, output in by_id.items()
        if output["error"] is None
    }
    assert {
        key: told["schedule"] for key, told in good.items() if key not in ("budget", "alias")
    } == {
        "full": "full",
        "schedule": "fastv-0.5",
        "text": "full",
    }
    assert good["budget"]["mean_keep"] == pytest.approx(0.25, abs=0.02)
    assert good["alias"]["mean_keep"] == pytest.approx(0.75, abs=0.02)
    refused = {
        key: (output["response"]["status_code"], output["error"]["error"]["code"])
        for key, output in by_id.items()
        if output["error"] is not None
    }
    assert refused == {
        "too-much": (400, "invalid_budget"),
        "line-6": (400, "invalid_request"),
        "no-such": (400, "unknown_schedule"),
        "no-messages": (400, 400),
        "other-model": (404, 404),
    }
    assert len({output["id"] for output in outputs}) == len(outputs)


def run(
    app: ASGIApp | str,
    text: str,
    path: Path,
    places: int = 4,
    is_dead: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Answer the lines of ``text`` by an application or a server; what ``path`` then holds."""

    async def answer() -> None:
        more: dict[str, Any] = {"base_url": app, "timeout": 120}
        if not isinstance(app, str):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            more = {"base_url": "http://batch", "transport": transport}
        with ExitStack() as files:
            asked = BatchInput(io.BytesIO(text.encode()))
            output = BatchOutput(path, asked.keys, files)
            async with httpx.AsyncClient(**more) as client:
                await answer_lines(client, asked, output, places, is_dead)
            output.finish(asked.keys)

    asyncio.run(answer())
    return outputs_of(path)


def outputs_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def counting(act: Callable[[int], Awaitable[None]]) -> FastAPI:
    """An application that does something at each request, which it is told the number of, from 1."""
    app = FastAPI()
    app.state.asked = []

    @app.post(CHAT)
    async def answer(request: Request) -> dict[str, str]:
        app.state.asked.append((await request.json())["model"])
        await act(len(app.state.asked))
        return {"said": "yes"}

    return app


def numbered(count: int) -> str:
    return "\n".join(line(f"line {n}", model=str(n)) for n in range(count))


@pytest.mark.engine
def test_a_refused_line_harms_no_other(server: Server, tmp_path: Path) -> None:
    check_mixed(run(server.url, mixed(NAME), tmp_path / "out.jsonl"))


def test_an_app_that_breaks_down_is_an_error_line(tmp_path: Path) -> None:
    async def fail(_: int) -> None:
        raise RuntimeError

    found = run(counting(fail), numbered(2), tmp_path / "out.jsonl")
    assert [output["response"]["status_code"] for output in found] == [500, 500]
    assert {output["error"]["error"]["code"] for output in found} == {"internal"}


def test_a_line_is_written_when_it_ends_and_few_are_under_way(tmp_path: Path) -> None:
    path, places = tmp_path / "out.jsonl", 3

    async def look(number: int) -> None:
        """At the n-th request all but those under way are in the file."""
        assert path.read_bytes().count(b"\n") >= number - places
        await asyncio.sleep(0.001 * (number % 3))

    app = counting(look)
    found = run(app, numbered(40), path, places)
    assert [output["custom_id"] for output in found] == [f"line {n}" for n in range(40)]
    assert all(output["error"] is None for output in found)
    assert sorted(app.state.asked, key=int) == [str(n) for n in range(40)]


def test_a_run_that_was_killed_asks_only_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    async def kill(number: int) -> None:
        if number == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        run(counting(kill), numbered(20), path, places=2)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    before = {output["custom_id"]: output for output in outputs_of(path)}
    assert 4 <= len(before) <= 7

    async def nothing(_: int) -> None:
        pass

    app = counting(nothing)
    found = run(app, numbered(20), path, places=2)
    assert len(app.state.asked) == 20 - len(before)
    assert [output["custom_id"] for output in found] == [f"line {n}" for n in range(20)]
    assert {output["custom_id"]: output for output in found}.items() >= before.items()


def test_what_a_dead_engine_did_not_answer_is_asked_again(tmp_path: Path) -> None:
    path, dead = tmp_path / "out.jsonl", []

    async def die(number: int) -> None:
        if number > 5:
            dead.append(number)
            raise RuntimeError

    with pytest.raises(EngineNotReady, match="the engine died"):
        run(counting(die), numbered(20), path, places=1, is_dead=lambda: bool(dead))
    assert [output["custom_id"] for output in outputs_of(path)] == [f"line {n}" for n in range(5)]


SETTINGS = """
[limits]
requests_per_minute = 1
[admin]
port = {port}
[jobs]
root = "{jobs}"
memory_share = 0.3
[[keys]]
name = "others"
sha256 = "{digest}"
scopes = ["generate"]
"""
"""Of a server that runs beside, and that would refuse most of the lines, were they sent from outside."""


@pytest.mark.engine
@pytest.mark.slow  # an engine of its own
def test_a_file_runs_through_an_engine_of_its_own(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    with socket.create_server(("127.0.0.1", 0)) as admin:
        port = admin.getsockname()[1]
        _run_a_file(tmp_path, SETTINGS.format(port=port, jobs=tmp_path / "jobs", digest="0" * 64))
    store.close()


def _run_a_file(tmp_path: Path, settings: str) -> None:
    (tmp_path / "in.jsonl").write_text(mixed("batch"))
    command = [sys.executable, "-m", "vtr_vllm.cli", "batch"]
    command += ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    (tmp_path / "settings.toml").write_text(settings)
    command += ["--model", str(checkpoint()), "--served-model-name", "batch"]
    command += ["--settings", str(tmp_path / "settings.toml")]
    command += ["--enforce-eager", "--block-size", "32"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "10 lines, 5 answered, 5 refused or failed" in done.stderr
    check_mixed(outputs_of(tmp_path / "out.jsonl"))
