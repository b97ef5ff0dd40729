"""Drained by one process, drained in all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
from fastapi import FastAPI

from tests.contract.source import ROOT
from vtr_server.gate.drain_flag import DrainFlag, shared_drain_flag
from vtr_server.gate.middleware import install
from vtr_server.operations.admin import router
from vtr_server.policy.settings import AdminSettings, ServerSettings


def test_without_a_file_it_is_of_one_process() -> None:
    one, other = shared_drain_flag(1, {"PROMETHEUS_MULTIPROC_DIR": "/nowhere"}), DrainFlag()
    one.set()
    assert (bool(one), bool(other)) == (True, False)
    assert not one.is_shared


def test_with_a_file_it_is_of_all_and_never_unset(tmp_path: Path) -> None:
    one, other = (DrainFlag(tmp_path / "flag") for _ in range(2))
    assert not one
    assert not other
    one.set()
    assert other
    (tmp_path / "flag").unlink()
    assert one
    assert other


def test_what_an_earlier_start_left_means_nothing(tmp_path: Path) -> None:
    file = tmp_path / "flag"
    file.touch()
    os.utime(file, (1e9, 1e9))
    flag = DrainFlag(file, since=1.5e9)
    assert not flag
    flag.set()
    assert DrainFlag(file, since=1.5e9)


CHILD = """
import os, sys
from vtr_server.gate.drain_flag import shared_drain_flag
flag = shared_drain_flag(2, os.environ)
if sys.argv[1] == "set":
    flag.set()
print(bool(flag))
"""


def test_processes_of_one_parent_share_it(tmp_path: Path) -> None:
    given = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def child(what: str) -> str:
        command = [sys.executable, "-c", CHILD, what]
        return subprocess.check_output(command, env=given, cwd=ROOT, text=True).strip()

    assert [child("look"), child("set"), child("look")] == ["False", "True", "True"]
    assert not shared_drain_flag(2, given), "the parent is another server's child"


def test_a_drain_of_one_process_turns_the_others_red(tmp_path: Path) -> None:
    def server() -> FastAPI:
        app = FastAPI()
        install(app, ServerSettings(admin=AdminSettings(port=1))).draining = DrainFlag(
            tmp_path / "f"
        )
        app.include_router(router)
        app.add_api_route("/v1/models", lambda: "models")
        return app

    async def ask() -> list[int]:
        asked, other = server(), server()
        transport = httpx.ASGITransport(other)
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
            before = await client.get("/v1/models")
            asked.state.vtr_gate.draining.set()
            return [before.status_code, (await client.get("/v1/models")).status_code]

    assert asyncio.run(ask()) == [200, 503]
