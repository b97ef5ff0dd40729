"""The flags of ``vtr search serve``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.source import ROOT
from tests.server.jobs.conftest import Place
from vtr_server.jobs.cli import main, parse
from vtr_server.jobs.store import JobStore


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VTR_JOBS_TOKEN", raising=False)


def test_by_default_only_this_machine_is_served() -> None:
    options = parse([])
    assert (options.host, options.port, options.workers) == ("127.0.0.1", 8100, 1)
    assert (options.root, options.publish, options.token) == (Path("jobs"), None, None)
    assert (options.models, options.servers, options.model_root) == ([], [], None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert parse(["--host", host]).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_beyond_it_a_token_is_needed(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--host", host])
    assert "VTR_JOBS_TOKEN" in capsys.readouterr().err
    assert parse(["--host", host, "--token", "a"]).token == "a"
    monkeypatch.setenv("VTR_JOBS_TOKEN", "b")
    assert parse(["--host", host]).token == "b"
    monkeypatch.setenv("VTR_JOBS_TOKEN", "")
    with pytest.raises(SystemExit):
        parse(["--host", host])


@pytest.mark.parametrize(
    "flags", [["--workers", "0"], ["--workers", "x"], ["--token", " "], ["--port", "x"], ["model"]]
)
def test_a_bad_flag_is_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(flags)


def test_a_folder_in_use_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    store = JobStore(place.jobs)
    assert main(["--root", str(place.jobs)]) == 2
    assert "in use by another" in capsys.readouterr().err
    store.close()


def test_the_service_is_a_module_and_loads_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vtr_server.jobs", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: vtr search serve")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fastapi" in imported
    assert not {"torch", "vllm", "vtr_vllm.search"} & imported


@pytest.mark.parametrize("flags", [["--token", "secret"], []])
def test_a_served_token_is_asked_for(place: Place, flags: list[str]) -> None:
    with place.serving(*flags) as (_, client):
        assert client.get("/v1/jobs").status_code == (401 if flags else 200)
        headers = {"Authorization": "Bearer secret"}
        assert client.get("/v1/jobs", headers=headers).status_code == 200
