"""Processes: one a job, never two, none left behind."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.running import wait_until
from tests.server.jobs.conftest import Place, client_of, error, is_alive, wait_for
from vtr_server.gate.drain import drain_first
from vtr_server.gate.middleware import Gate
from vtr_server.http import routes
from vtr_server.jobs import runner, store
from vtr_server.jobs.app import create_app, start_service
from vtr_server.jobs.store import JobStore, try_lock
from vtr_server.policy.settings import ServerSettings


def test_a_service_that_is_killed_leaves_no_process_and_its_jobs_go_on(place: Place) -> None:
    place.control(hold_at=1)
    with place.serving() as (process, client):
        running = client.post("/v1/jobs", json=place.body()).json()["id"]
        queued = client.post("/v1/jobs", json=place.body()).json()["id"]
        wait_until(lambda: place.steps(running) == [0])
        process.kill()
        process.wait()
    with place.serving() as (_, client):
        wait_until(lambda: len(place.pids(running)) == 2)
        first, second = place.pids(running)
        assert not is_alive(first)
        assert is_alive(second)
        place.control()
        assert wait_for(client, running, "done")["attempts"] == 2
        assert wait_for(client, queued, "done")["attempts"] == 1
    assert place.steps(running) == place.steps(queued) == [0, 1, 2]
    assert not place.overlapped()


def test_a_new_service_waits_for_a_search_that_does_not_stop_at_once(place: Place) -> None:
    """The search ignores SIGTERM, so it lives on into the next service's time."""
    place.control(hold_at=1, deaf=1)
    with place.serving("--grace-seconds", "600") as (process, client):
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        wait_until(lambda: place.steps(job_id) == [0])
        process.kill()
        process.wait()
    (first,) = place.pids(job_id)
    place.control(hold_at=1)
    with place.serving("--workers", "2") as (_, client):
        later = client.post("/v1/jobs", json=place.body(items=1)).json()["id"]
        wait_for(client, later, "done")
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"
        assert is_alive(first)
        os.kill(first, signal.SIGKILL)
        place.control()
        wait_for(client, job_id, "done")
    assert place.steps(job_id) == [0, 1, 2]
    assert not place.overlapped()


def test_a_service_that_is_stopped_queues_its_jobs(place: Place) -> None:
    place.control(hold_at=1)
    with place.serving() as (process, client):
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        wait_until(lambda: place.steps(job_id) == [0])
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert not any(map(is_alive, place.pids(job_id)))
    store = JobStore(place.jobs)
    assert store.get(job_id).state == "queued"
    store.close()


def fail_writing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Have the next writes of job files fail, as on a full disk; how many were tried comes back."""
    real, tried = store.whole_file, [0]

    def full(path: Path) -> Any:
        tried[0] += 1
        if tried[0] <= times:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(store, "whole_file", full)
    return tried


@pytest.mark.parametrize("times", [1, 3])
def test_a_disk_that_is_full_for_a_while_costs_no_job_and_no_slot(
    place: Place, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(runner, "_RETRY_SECONDS", (0.01, 0.02))
    with client_of(create_app(place.settings())) as client:
        place.control(hold_at=1)
        busy, first, second = (
            client.post("/v1/jobs", json=place.body()).json()["id"] for _ in range(3)
        )
        wait_until(lambda: place.steps(busy) == [0])
        tried = fail_writing(monkeypatch, times)
        place.control()
        wait_for(client, busy, "done")
        wait_until(lambda: tried[0] > times)
        wait_for(client, first, "done")
        wait_for(client, second, "done")
        assert client.get("/health").status_code == 200


def test_as_many_jobs_wait_as_may(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MOST_QUEUED", 2)
    place.control(hold_at=1)
    with client_of(create_app(place.settings())) as client:
        running = client.post("/v1/jobs", json=place.body()).json()["id"]
        wait_for(client, running, "running")
        ids = [client.post("/v1/jobs", json=place.body()).json()["id"] for _ in range(2)]
        refused = client.post("/v1/jobs", json=place.body())
        assert "2 jobs are queued" in error(refused, 429, "jobs_busy")
        assert refused.headers["retry-after"] == "60"
        client.post(f"/v1/jobs/{ids[0]}/cancel")
        assert client.post("/v1/jobs", json=place.body()).status_code == 201
        error(client.post(f"/v1/jobs/{ids[0]}/resume"), 429, "jobs_busy")
        place.control()


def test_a_job_that_cannot_begin_fails_and_the_next_one_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobStore(place.jobs)
    first, second = (jobs.create(place.spec()).id for _ in range(2))
    jobs.close()
    fail_writing(monkeypatch, 1)
    with client_of(create_app(place.settings())) as client:
        assert "No space left" in wait_for(client, first, "failed")["reason"]
        wait_for(client, second, "done")
        assert client.get("/health").status_code == 200


def test_a_model_server_that_is_stopped_queues_its_jobs(place: Place) -> None:
    """Beside the drain of its requests, and before its engine is told."""
    place.control(hold_at=1)
    states: list[str] = []

    async def serve() -> str:
        jobs = JobStore(place.jobs)
        service = start_service(jobs, place.settings())
        job = jobs.create(place.spec())
        service.runner.submit(job.id)
        while place.steps(job.id) != [0]:
            await asyncio.sleep(0.05)
        engine = SimpleNamespace(errored=False)
        engine.shutdown = lambda timeout: states.append(
            json.loads((place.jobs / job.id / "job.json").read_text())["state"]
        )
        drain_first(engine, Gate(ServerSettings()), service.runner.stop)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: engine.shutdown(timeout=60))
        jobs.close()
        return job.id

    job_id = asyncio.run(serve())
    assert states == ["queued"]
    assert not any(map(is_alive, place.pids(job_id)))


def test_a_cancellation_outlives_the_service(place: Place) -> None:
    """Killed between the request and the process's end: the job must not start again."""
    store = JobStore(place.jobs)
    job = store.create(place.spec())
    store.update(job.id, state="running", cancel_requested=True, attempts=1)
    store.close()
    with client_of(create_app(place.settings())) as client:
        assert client.get(f"/v1/jobs/{job.id}").json()["state"] == "cancelled"
    assert place.pids(job.id) == []


def test_a_search_that_ignores_sigterm_is_killed(place: Place) -> None:
    place.control(hold_at=1, deaf=1)
    with client_of(create_app(place.settings(grace_seconds=0.5))) as client:
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        wait_until(lambda: place.steps(job_id) == [0])
        client.post(f"/v1/jobs/{job_id}/cancel")
        assert wait_for(client, job_id, "cancelled")["exit"] == 128 + signal.SIGKILL
        assert not is_alive(place.pids(job_id)[0])


def test_a_search_that_is_killed_from_outside_has_failed_and_resumes(place: Place) -> None:
    place.control(hold_at=1)
    with client_of(create_app(place.settings())) as client:
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        events = place.jobs / job_id / "events.jsonl"
        # A step is told of behind it: half a line must not come between.
        wait_until(lambda: events.exists() and events.read_text().count('"progress"') == 2)
        with events.open("a") as file:
            file.write('{"time": 0, "ki')  # half a line, as it was killed
        os.kill(place.pids(job_id)[0], signal.SIGKILL)
        failed = wait_for(client, job_id, "failed")
        assert (failed["exit"], failed["reason"]) == (137, "the search ended with exit code 137")
        place.control()
        client.post(f"/v1/jobs/{job_id}/resume")
        wait_for(client, job_id, "done")
        told = client.get(f"/v1/jobs/{job_id}/events").text
        assert (
            told.count("event: progress") == 2 + 3
        )  # at the start of both attempts, and a step each
        assert told.count("event: step") == 3


def test_as_many_jobs_run_at_once_as_there_are_slots(place: Place) -> None:
    place.control(hold_at=0)
    with client_of(create_app(place.settings(workers=2))) as client:
        ids = [client.post("/v1/jobs", json=place.body()).json()["id"] for _ in range(3)]
        wait_until(lambda: place.pids(ids[0]) and place.pids(ids[1]))
        assert client.get(f"/v1/jobs/{ids[2]}").json()["state"] == "queued"
        assert place.pids(ids[2]) == []
        place.control()
        for job_id in ids:
            wait_for(client, job_id, "done")
    assert not place.overlapped()


def test_a_job_is_not_started_while_its_folder_is_locked(place: Place) -> None:
    store = JobStore(place.jobs)
    job = store.create(place.spec())
    other = store.create(place.spec())
    store.close()
    lock = try_lock(place.jobs / job.id / "lock")
    assert lock is not None
    with client_of(create_app(place.settings(workers=2))) as client:
        wait_for(client, other.id, "done")
        assert client.get(f"/v1/jobs/{job.id}").json()["state"] == "queued"
        os.close(lock)
        wait_for(client, job.id, "done")


def test_a_command_that_cannot_start_fails_its_job(place: Place) -> None:
    with client_of(create_app(place.settings(command=("no-such-command",)))) as client:
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        failed = wait_for(client, job_id, "failed")
    assert "cannot start no-such-command" in failed["reason"]


def test_a_job_whose_data_is_gone_fails_by_name(place: Place) -> None:
    store = JobStore(place.jobs)
    job = store.create(place.spec(data="gone.jsonl"))
    store.close()
    with client_of(create_app(place.settings())) as client:
        failed = wait_for(client, job.id, "failed")
    assert "gone.jsonl" in failed["reason"]
    assert failed["exit"] is None


def test_the_reason_is_of_this_attempt(place: Place) -> None:
    place.control(fail_at=1)
    with client_of(create_app(place.settings())) as client:
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        wait_for(client, job_id, "failed")
    silent = (sys.executable, "-c", "raise SystemExit(5)")
    with client_of(create_app(place.settings(command=silent))) as client:
        client.post(f"/v1/jobs/{job_id}/resume")
        failed = wait_for(client, job_id, "failed")
        assert failed["reason"] == "the search ended with exit code 5"


def test_a_slot_that_stopped_turns_the_servers_health_red_and_not_its_readiness(
    place: Place,
) -> None:
    """Requests are answered as before, so none may be kept away; and somebody has to look."""

    async def why() -> None:
        return None

    app = create_app(place.settings())
    app.router.routes = [route for route in app.routes if getattr(route, "path", "") != "/health"]
    app.include_router(routes.router)
    app.add_api_route("/ready", routes.ready)
    app.state.vtr = SimpleNamespace(engine=SimpleNamespace(why_unhealthy=why))
    with client_of(app) as client:
        assert client.get("/health").status_code == 200
        app.state.jobs = replace(
            app.state.jobs, runner=SimpleNamespace(why_unhealthy=lambda: "dead")
        )
        red = client.get("/health")
        assert (red.status_code, red.json()["error"]["message"]) == (503, "[jobs]: dead")
        assert client.get("/ready").status_code == 200
