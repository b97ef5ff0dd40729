"""The programs that check what is deployed, and a Prometheus to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.contract.source import ROOT
from tests.running import WAIT_SECONDS, free_port, wait_until_up

DEPLOY = ROOT / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))


def tool(name: str) -> str:
    """A program, by the environment (``PROMTOOL=...`` for promtool), beside Python, or by PATH.

    Without it the test is skipped, or fails where ``VTR_REQUIRE_TOOLS=1`` says that .ci/tools was
    run. It has no source for kubectl: Debian's is too old to know components.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = os.environ.get(name.upper().replace("-", "_")) or shutil.which(name, path=beside)
    if found:
        return found
    if os.environ.get("VTR_REQUIRE_TOOLS") == "1" and name != "kubectl":
        pytest.fail(f"{name} is not there; .ci/tools installs it")
    pytest.skip(f"{name} is not there; .ci/tools installs it")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; fails the test with it where the command fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def rules(kind: str) -> list[dict[str, Any]]:
    """Prometheus rules that have this field: ``record``, ``alert`` or ``expr``."""
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus with our configuration and rules that scrapes ``target`` each second.

    ``target`` is host:port, ``folder`` an empty folder; yields a client of its HTTP API.
    """
    given = tool("prometheus")
    shutil.copytree(DEPLOY / "prometheus" / "rules", folder / "rules")
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'data'}"]
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [given, f"--config.file={folder / 'prometheus.yml'}", *flags], stdout=out, stderr=out
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            wait_until_up(process, f"http://{address}/-/ready", log, WAIT_SECONDS)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def values(client: httpx.Client, query: str) -> list[float]:
    """The value of every series that a query returns now."""
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    return [float(series["value"][1]) for series in answer["data"]["result"]]
