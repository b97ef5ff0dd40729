"""Batch files: every line gets its own answer or its own error."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from vllm.entrypoints.launchers.run_batch import BatchRequestOutput

from tests.server.bad_input import CHAT, COMPLETION, chat_body
from tests.server.conftest import NAME, Server, checkpoint
from vtr_server.vllm_api.batch import answer_lines, main, read_lines


def line(custom_id: str, url: str = CHAT, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


@given(st.text() | st.lists(st.text(max_size=20)).map("\n".join))
def test_any_text_gives_one_line_each_with_a_request_or_an_error(text: str) -> None:
    found = read_lines(text)
    assert len(found) == sum(bool(part.strip()) for part in text.split("\n"))
    for one in found:
        assert one.custom_id
        assert (one.error is None) == bool(one.body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=4))
def test_a_good_line_keeps_its_id_and_its_body(custom_id: str, body: dict[str, Any]) -> None:
    body.pop("stream", None)
    whole = {"custom_id": custom_id, "method": "POST", "url": COMPLETION, "body": body}
    [found] = read_lines(json.dumps(whole))
    assert (found.custom_id, found.url, found.error) == (custom_id, COMPLETION, None)
    assert json.loads(found.body) == body


@pytest.mark.parametrize(
    ("text", "custom_id", "said"),
    [
        ("{nope", "line-1", "Invalid JSON"),
        ("[1]", "line-1", "a line is one JSON object"),
        ('"text"', "line-1", "a line is one JSON object"),
        ("[" * 100_000, "line-1", "Invalid JSON"),
        ('{"custom_id": 7}', "line-1", "custom_id"),
        ('{"custom_id": "a"}', "a", "method"),
        (line("a").replace("POST", "GET"), "a", "POST"),
        (line("a", "/v1/embeddings"), "a", "/v1/embeddings"),
        (line("a", "/health"), "a", "/health"),
        (line("a", stream=True), "a", "leave stream out"),
    ],
)
def test_a_bad_line_says_what_is_wrong(text: str, custom_id: str, said: str) -> None:
    [found] = read_lines(text)
    assert found.custom_id == custom_id
    assert said in str(found.error)
    assert "line 1 of the batch file" in str(found.error)


@pytest.mark.parametrize(
    ("given_in", "given_out", "said"),
    [
        ("missing.jsonl", "out.jsonl", "cannot be read"),
        ("latin1.jsonl", "out.jsonl", "UTF-8"),
        ("good.jsonl", "nowhere/out.jsonl", "no such folder"),
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


@pytest.mark.engine
def test_a_refused_line_harms_no_other(server: Server) -> None:
    async def run() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            outputs = await answer_lines(client, read_lines(mixed(NAME)), places=4)
        return [json.loads(output.model_dump_json()) for output in outputs]

    check_mixed(asyncio.run(run()))


def test_an_app_that_breaks_down_is_an_error_line() -> None:
    app = FastAPI()

    @app.post(CHAT)
    async def fail() -> None:
        raise RuntimeError

    async def run() -> list[BatchRequestOutput]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://batch") as client:
            return await answer_lines(client, read_lines(line("a") + "\n" + line("b")), places=1)

    for output in asyncio.run(run()):
        assert output.response.status_code == 500
        assert output.error["error"]["code"] == "internal"


SETTINGS = """
[limits]
requests_per_minute = 1
[[keys]]
name = "others"
sha256 = "%s"
scopes = ["generate"]
""" % ("0" * 64)
"""Of a server that would refuse most of the lines, were they sent from outside."""


@pytest.mark.engine
@pytest.mark.slow  # an engine of its own
def test_a_file_runs_through_an_engine_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(mixed("batch"))
    command = [sys.executable, "-m", "vtr_vllm.cli", "batch"]
    command += ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    (tmp_path / "settings.toml").write_text(SETTINGS)
    command += ["--model", str(checkpoint()), "--served-model-name", "batch"]
    command += ["--settings", str(tmp_path / "settings.toml")]
    command += ["--enforce-eager", "--block-size", "32"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "10 lines, 5 answered, 5 refused or failed" in done.stderr
    check_mixed([json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()])
