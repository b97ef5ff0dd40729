"""A place for a job service: data, jobs, a folder to publish to, and a search in the small."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.running import WAIT_SECONDS, wait_until
from vtr_server.jobs.app import JobServiceSettings, create_app
from vtr_server.jobs.protocol import JobSpec
from vtr_server.jobs.sources import Sources
from vtr_server.jobs.store import try_lock

COMMAND = (sys.executable, str(Path(__file__).with_name("fake_search.py")))
SERVE = "import sys; from vtr_server.jobs.cli import main; main(sys.argv[3:], sys.argv[1:3])"


@dataclass(frozen=True)
class Place:
    """Folders of one service; ``control`` says how its searches behave."""

    folder: Path

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def published(self) -> Path:
        return self.folder / "published"

    def control(self, **values: int) -> None:
        """Such as hold_at=1, fail_at=2, deaf=1; see ``fake_search``."""
        draft = self.folder / "control.tmp"
        draft.write_text(json.dumps(values))
        draft.replace(self.folder / "data" / "control.json")

    def sources(self) -> Sources:
        return Sources(self.folder / "data", servers=("http://one:8000", "http://two:8000"))

    def settings(self, workers: int = 1, **changes: Any) -> JobServiceSettings:
        given = {"grace_seconds": 30.0, "publish": self.published, "command": COMMAND} | changes
        return JobServiceSettings(self.jobs, replace(self.sources(), workers=workers), **given)

    def body(self, **changes: Any) -> dict[str, Any]:
        """A spec as a client sends it."""
        given = {"kind": "g-search", "model": "demo", "data": "items.jsonl", "budgets": [0.5]}
        return given | {"items": 3} | changes

    def spec(self, **changes: Any) -> JobSpec:
        return JobSpec(**self.body(**changes))

    def steps(self, job_id: str) -> list[int]:
        """What a job's search has done, in order."""
        journal = self.jobs / job_id / "out" / "journal.jsonl"
        return [int(line) for line in journal.read_text().split()] if journal.exists() else []

    def pids(self, job_id: str) -> list[int]:
        """Every process that has worked on a job."""
        path = self.jobs / job_id / "out" / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def overlapped(self) -> bool:
        """Whether two processes were ever in one job folder."""
        return any(self.jobs.glob("*/out/overlap"))

    @contextmanager
    def serving(self, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
        """A service in a process of its own, on a free port; killed at the end if it still runs."""
        log = self.folder / "service.log"
        command = [sys.executable, "-c", SERVE, *COMMAND, "--root", str(self.jobs)]
        command += ["--data-root", str(self.folder / "data"), "--publish", str(self.published)]
        command += ["--port", "0", *flags]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = _address(process, log)
            with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
                yield process, client
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where a service that took any port listens, from what uvicorn says once it serves."""

    def look() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"Uvicorn running on (http://[\w.]+:\d+) ", log.read_text())

    found = wait_until(look, told=log.read_text)
    assert found is not None
    return found[1]


def client_of(app: FastAPI) -> TestClient:
    """A client on this machine, as a service without a token asks for."""
    return TestClient(app, base_url="http://127.0.0.1")


@contextmanager
def new_place(folder: Path) -> Iterator[Place]:
    """A place in an empty folder; ends what a failed test left running."""
    for name in ("data", "published"):
        (folder / name).mkdir()
    (folder / "data" / "items.jsonl").write_text("{}\n")
    place = Place(folder)
    place.control()
    yield place
    for alone in place.jobs.glob("*/out/alone"):
        lock = try_lock(alone)
        if lock is None:
            os.kill(place.pids(alone.parents[1].name)[-1], signal.SIGKILL)
        else:
            os.close(lock)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with new_place(tmp_path) as place:
        yield place


@dataclass(frozen=True)
class Finished:
    """A job that is done, for tests that only look at it."""

    client: TestClient
    place: Place
    job_id: str

    @property
    def url(self) -> str:
        return f"/v1/jobs/{self.job_id}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    with (
        new_place(tmp_path_factory.mktemp("finished")) as place,
        client_of(create_app(place.settings())) as client,
    ):
        yield Finished(client, place, finish(client, place))


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    with client_of(create_app(place.settings())) as client:
        yield client


def create(client: TestClient, place: Place, **changes: Any) -> str:
    answer = client.post("/v1/jobs", json=place.body(**changes))
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def finish(client: TestClient, place: Place, **changes: Any) -> str:
    job_id = create(client, place, **changes)
    wait_for(client, job_id, "done")
    return job_id


def error(answer: Any, status: int, code: str | int) -> str:
    """The message of an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] == code
    message: str = body["message"]
    return message


def wait_for(client: Any, job_id: str, *states: str) -> dict[str, Any]:
    """The job, once it is in one of the states."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return job if job["state"] in states else None

    return wait_until(look)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def read_events(lines: Iterator[str]) -> Iterator[tuple[str | None, str, dict[str, Any]]]:
    """Server-sent events as (id, event, data)."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}
