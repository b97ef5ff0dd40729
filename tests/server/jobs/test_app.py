"""The routes, over real jobs of a search in the small."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.jobs.conftest import (
    Finished,
    Place,
    client_of,
    create,
    error,
    finish,
    read_events,
    wait_for,
    wait_until,
)
from tests.server.jobs.fake_search import GEOMETRY
from vtr_server.jobs import app
from vtr_server.jobs import events as job_events
from vtr_server.jobs.app import create_app
from vtr_vllm.errors import ConfigurationError
from vtr_vllm.schedules import Schedule, fastv


def events(client: TestClient, job_id: str, **headers: str) -> list[tuple[str | None, str, Any]]:
    answer = client.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(read_events(iter(answer.text.splitlines())))


def test_a_job_is_created_runs_and_is_found_again(client: TestClient, place: Place) -> None:
    answer = client.post("/v1/jobs", json=place.body())
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    done = wait_for(client, job["id"], "done")
    assert (done["exit"], done["reason"], done["attempts"]) == (0, None, 1)
    assert done["spec"] == job["spec"]
    assert place.steps(job["id"]) == [0, 1, 2]
    assert client.get("/health").json() == {"status": "ok"}


def test_the_search_gets_what_was_asked(client: TestClient, place: Place) -> None:
    asked = {"kind": "all", "budgets": [0.5, 0.25], "seed": 7, "tolerance": 0.01}
    asked |= {"objective": "label-free", "servers": ["http://one:8000", "http://two:8000"]}
    job_id = finish(client, place, **asked, heldout="items.jsonl")
    out, data = place.jobs / job_id / "out", str(place.folder / "data" / "items.jsonl")
    assert json.loads((out / "arguments.txt").read_text()) == [
        *("all", "--servers=http://one:8000,http://two:8000", "--model=demo", f"--data={data}"),
        *(f"--heldout={data}", "--budgets=0.5,0.25", "--objective=label-free"),
        *("--tolerance=0.01", "--items=3", "--seed=7"),
        *("--out", str(out), "--events", str(place.jobs / job_id / "events.jsonl")),
    ]


def test_jobs_are_listed_newest_first_in_pages(client: TestClient, place: Place) -> None:
    place.control(hold_at=0)
    ids = [create(client, place) for _ in range(5)]
    wait_for(client, ids[0], "running")
    page = client.get("/v1/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:2:-1], True)
    rest = client.get("/v1/jobs", params={"limit": 3, "after": ids[3]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[2::-1], False)
    queued = client.get("/v1/jobs", params={"state": "queued"}).json()
    assert [job["id"] for job in queued["data"]] == ids[:0:-1]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/schedules"),
        ("GET", "/schedules/x"),
        ("GET", "/report/"),
        ("POST", "/cancel"),
        ("POST", "/resume"),
        ("POST", "/publish"),
    ],
)
@pytest.mark.parametrize("job_id", ["0" * 16, "..", "%2e%2e", "lock"])
def test_an_unknown_job(client: TestClient, method: str, path: str, job_id: str) -> None:
    body = {"schedules": None} if path == "/publish" else None
    answer = client.request(method, f"/v1/jobs/{job_id}{path}", json=body)
    assert answer.status_code in ((404,) if job_id == "0" * 16 else (404, 405))
    assert "error" in answer.json()


def test_a_failed_job_says_why_and_can_be_resumed(client: TestClient, place: Place) -> None:
    place.control(fail_at=1)
    job_id = create(client, place)
    failed = wait_for(client, job_id, "failed")
    assert (failed["exit"], failed["reason"]) == (3, "search: no engine answers at step 1")
    place.control()
    resumed = client.post(f"/v1/jobs/{job_id}/resume").json()
    assert (resumed["state"], resumed["exit"], resumed["reason"]) == ("queued", None, None)
    assert wait_for(client, job_id, "done")["attempts"] == 2
    assert place.steps(job_id) == [0, 1, 2]


def test_a_running_and_a_queued_job_are_cancelled_and_resumed(
    client: TestClient, place: Place
) -> None:
    place.control(hold_at=1)
    running, queued = create(client, place), create(client, place)
    wait_until(lambda: place.steps(running) == [0])
    assert client.post(f"/v1/jobs/{queued}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{running}/cancel").json()["cancel_requested"]
    assert wait_for(client, running, "cancelled")["exit"] == 143
    assert place.pids(queued) == []
    place.control()
    for job_id in (queued, running):
        assert client.post(f"/v1/jobs/{job_id}/resume").json()["cancel_requested"] is False
        wait_for(client, job_id, "done")
    assert place.steps(running) == [0, 1, 2]
    assert not place.overlapped()


def test_what_a_state_does_not_allow(client: TestClient, place: Place) -> None:
    place.control(hold_at=0)
    job_id = create(client, place)
    wait_for(client, job_id, "running")
    assert "running" in error(client.post(f"/v1/jobs/{job_id}/resume"), 409, "job_conflict")
    publish = client.post(f"/v1/jobs/{job_id}/publish", json={"schedules": None})
    assert "running" in error(publish, 409, "job_conflict")
    place.control()
    wait_for(client, job_id, "done")
    assert "done" in error(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "job_conflict")
    assert "done" in error(client.post(f"/v1/jobs/{job_id}/resume"), 409, "job_conflict")


def test_events_are_replayed_and_taken_up_anywhere(client: TestClient, place: Place) -> None:
    job_id = finish(client, place)
    told = events(client, job_id)
    step = ["step", "progress"]
    kinds = ["progress", *step, "found", *step, *step, "done", "state"]
    assert [event for _, event, _ in told] == kinds
    assert [data["evaluations"] for _, event, data in told if event == "step"] == [1, 2, 3]
    assert told[-1][0] is None
    assert told[-1][2] == client.get(f"/v1/jobs/{job_id}").json()
    for place_in_stream, (last, _, _) in enumerate(told[:-1], start=1):
        assert last is not None
        assert events(client, job_id, **{"Last-Event-ID": last}) == told[place_in_stream:]


@pytest.mark.parametrize("given", ["1", "999999", "-1", "x", "9" * 40])
def test_a_wrong_last_event_id_is_refused(finished: Finished, given: str) -> None:
    answer = finished.client.get(f"{finished.url}/events", headers={"Last-Event-ID": given})
    error(answer, 400, "invalid_request")


def test_a_job_that_never_ran_has_no_events_but_its_state(client: TestClient, place: Place) -> None:
    place.control(hold_at=0)
    create(client, place)
    job_id = create(client, place)
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert [(event, data["state"]) for _, event, data in events(client, job_id)] == [
        ("state", "cancelled")
    ]


def test_events_arrive_while_the_job_runs(place: Place) -> None:
    place.control(hold_at=1)
    with place.serving() as (_, client):
        job_id = client.post("/v1/jobs", json=place.body()).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            told = read_events(answer.iter_lines())
            seen = []
            for _, event, _ in told:
                seen.append(event)
                if event == "step":
                    break
            assert "state" in seen  # it was queued, or running
            place.control()
            seen = [event for _, event, _ in told]
        told_of = [event for event in seen if event not in ("state", "progress", "found")]
        assert told_of == ["step", "step", "done"]
        assert seen.count("progress") >= 2, "a search tells how far it is with each step"
        assert seen[-1] == "state"


def test_streams_at_once_are_bounded(
    client: TestClient, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "MOST_OF_A_CALLER", 0)
    refused = client.get(f"/v1/jobs/{finish(client, place)}/events")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "jobs_busy")
    assert int(refused.headers["retry-after"]) > 0


def test_a_client_that_goes_ends_its_stream(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's call returns although the job goes on, and the place is free again."""
    place.control(hold_at=0)
    monkeypatch.setattr(job_events, "MOST_WATCHING", 1)
    app = create_app(place.settings())
    sent: list[dict[str, Any]] = []

    async def watch_and_leave() -> None:
        async with app.router.lifespan_context(app):
            service = app.state.jobs
            job = service.store.create(place.spec())
            service.runner.submit(job.id)
            begun = asyncio.Event()

            messages = iter(["http.request"])

            async def receive() -> dict[str, Any]:
                if asked := next(messages, None):
                    return {"type": asked}
                await begun.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)
                if b"running" in message.get("body", b""):
                    begun.set()

            before = asyncio.all_tasks()
            path = f"/v1/jobs/{job.id}/events"
            scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
            scope |= {"query_string": b"", "headers": [], "asgi": {"spec_version": "2.3"}}
            await app(scope, receive, send)  # type: ignore[arg-type]
            assert asyncio.all_tasks() <= before
            with service.watchers.place("-"):  # the only one there is
                pass
            assert service.store.get(job.id).state == "running"

    asyncio.run(watch_and_leave())
    assert sent[0]["status"] == 200


def test_schedules_are_listed_and_fetched(client: TestClient, place: Place) -> None:
    job_id = finish(client, place, budgets=[0.5, 0.25])
    listed = client.get(f"/v1/jobs/{job_id}/schedules").json()["data"]
    assert [(item["name"], item["budget"]) for item in listed] == [
        ("g-search-0.25-seed0", 0.25),
        ("g-search-0.5-seed0", 0.5),
    ]
    fetched = client.get(f"/v1/jobs/{job_id}/schedules/{listed[0]['name']}")
    assert fetched.headers["content-type"] == "application/json"
    assert Schedule.from_json(fetched.text).counts(100) == fastv(GEOMETRY, 0.25).counts(100)
    error(client.get(f"/v1/jobs/{job_id}/schedules/other"), 404, 404)


def test_a_job_without_results_has_none(client: TestClient, place: Place) -> None:
    place.control(fail_at=0)
    job_id = create(client, place)
    wait_for(client, job_id, "failed")
    assert client.get(f"/v1/jobs/{job_id}/schedules").json() == {"data": []}
    error(client.get(f"/v1/jobs/{job_id}/report/"), 404, 404)


@pytest.mark.parametrize(
    ("name", "kind", "start"),
    [
        ("", "text/html; charset=utf-8", b"<!doctype html>"),
        ("index.html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("keep.png", "image/png", b"\x89PNG"),
        ("search.json", "application/json", b"{}"),
    ],
)
def test_the_report_is_served(finished: Finished, name: str, kind: str, start: bytes) -> None:
    answer = finished.client.get(f"{finished.url}/report/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content.startswith(start)


@pytest.fixture(scope="module")
def with_secrets(finished: Finished) -> Finished:
    """Its report's folder also holds what nobody may read."""
    report = finished.place.jobs / finished.job_id / "out" / "report"
    (report / ".hidden").write_text("secret")
    (report / "link.txt").symlink_to(report.parent / "journal.jsonl")
    (report / "sub").mkdir()
    (report / "sub" / "index.html").write_text("secret")
    return finished


@pytest.mark.parametrize(
    "name",
    [
        *("../journal.jsonl", "..%2fjournal.jsonl", "%2e%2e%2fjournal.jsonl", "%2e%2e"),
        *("..%5cjournal.jsonl", "%2fetc%2fpasswd", ".hidden", "link.txt", "x%00", "nosuch.png"),
        "sub/index.html",
    ],
)
def test_nothing_but_the_report_is_served(with_secrets: Finished, name: str) -> None:
    assert with_secrets.client.get(f"{with_secrets.url}/report/{name}").status_code == 404


def published(place: Place) -> dict[str, float | None]:
    return {path.name: Schedule.load(path).budget for path in place.published.glob("*")}


def test_schedules_are_published(client: TestClient, place: Place) -> None:
    job_id = finish(client, place, budgets=[0.5, 0.25])
    one = client.post(f"/v1/jobs/{job_id}/publish", json={"schedules": ["g-search-0.5-seed0"]})
    assert one.json()["data"] == [{"name": "g-search-0.5-seed0", "file": "g-search-0.5-seed0.json"}]
    assert published(place) == {"g-search-0.5-seed0.json": 0.5}
    everything = client.post(f"/v1/jobs/{job_id}/publish", json={"schedules": None})
    assert len(everything.json()["data"]) == 2
    assert published(place) == {"g-search-0.5-seed0.json": 0.5, "g-search-0.25-seed0.json": 0.25}


def test_a_publication_that_a_server_would_refuse_writes_nothing(
    client: TestClient, place: Place
) -> None:
    first = finish(client, place)
    client.post(f"/v1/jobs/{first}/publish", json={"schedules": None})
    before = published(place)
    rival = finish(client, place, seed=1, budgets=[0.25, 0.5])
    answer = client.post(f"/v1/jobs/{rival}/publish", json={"schedules": None})
    assert "both claim budget 0.5" in error(answer, 422, "invalid_schedule")
    assert published(place) == before


@pytest.mark.parametrize(
    "body", [{}, {"schedules": []}, {"schedules": "all"}, {"schedules": ["nosuch"]}, [], None]
)
def test_a_malformed_publication_is_refused(finished: Finished, body: object) -> None:
    answer = finished.client.post(f"{finished.url}/publish", json=body)
    error(answer, 400, "invalid_request")
    assert published(finished.place) == {}


def test_a_service_without_a_folder_publishes_nothing(place: Place) -> None:
    with client_of(create_app(place.settings(publish=None))) as client:
        job_id = finish(client, place)
        answer = client.post(f"/v1/jobs/{job_id}/publish", json={"schedules": None})
        assert "--publish" in error(answer, 409, "job_conflict")


def test_jobs_of_an_earlier_service_are_there(place: Place) -> None:
    with client_of(create_app(place.settings())) as client:
        job_id = finish(client, place)
        job = client.get(f"/v1/jobs/{job_id}").json()
    with client_of(create_app(place.settings())) as client:
        assert client.get(f"/v1/jobs/{job_id}").json() == job
        assert client.get(f"/v1/jobs/{job_id}/report/").status_code == 200


def test_a_service_that_cannot_write_how_a_job_ended_is_unhealthy(
    place: Place, monkeypatch: Any
) -> None:
    place.control(hold_at=0)
    with client_of(create_app(place.settings())) as client:
        job_id = create(client, place)
        wait_until(lambda: place.pids(job_id))
        job_file: Path = place.jobs / job_id / "job.json"
        job_file.unlink()
        (job_file / "in-the-way").mkdir(parents=True)  # so the job cannot be written any more
        place.control()
        wait_until(lambda: client.get("/health").status_code == 503)
        assert "cannot be written" in error(client.get("/health"), 503, 503)


# The token, which is a key of the same gate that stands before the server's routes

TOKEN = "sésame-1"


@pytest.fixture
def guarded(place: Place) -> Iterator[TestClient]:
    with client_of(create_app(place.settings(token=TOKEN))) as client:
        yield client


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer sésame"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/nosuch", "/metrics"])
def test_nothing_without_the_token(guarded: TestClient, given: str | None, path: str) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    for answer in (
        guarded.get(path, headers=headers),
        guarded.post(path, content="{", headers=headers),
    ):
        error(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_every_job_with_it(guarded: TestClient, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}".encode()}
    assert guarded.get("/v1/jobs", headers=headers).status_code == 200
    assert guarded.get("/nosuch", headers=headers).status_code == 403


def test_health_needs_none(guarded: TestClient) -> None:
    assert guarded.get("/health").status_code == 200


def test_metrics_tell_of_jobs(client: TestClient, place: Place) -> None:
    def value(text: str, name: str) -> float:
        (line,) = (each for each in text.splitlines() if each.startswith(f"{name} "))
        return float(line.split()[1])

    ended = 'vtr_jobs_finished_total{state="done"}'
    before = value(client.get("/metrics").text, ended)
    finish(client, place)
    after = client.get("/metrics")
    assert value(after.text, ended) == before + 1
    assert value(after.text, 'vtr_jobs{state="running"}') == 0
    assert "vtr_ready" not in after.text  # of servers with an engine: an alert goes by it
    assert "process_start_time_seconds" in after.text


def test_metrics_want_the_token(guarded: TestClient) -> None:
    assert guarded.get("/metrics").status_code == 401
    asked = {"Authorization": f"Bearer {TOKEN}".encode(), "Accept": b"application/openmetrics-text"}
    answer = guarded.get("/metrics", headers=asked)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_answers_are_marked_as_the_servers_are(client: TestClient) -> None:
    for answer in (client.get("/v1/jobs"), client.get("/nosuch"), client.put("/v1/jobs")):
        assert answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/nosuch").json()["error"]["code"] == 404
    assert set(client.put("/v1/jobs").headers["allow"].split(", ")) <= {"GET", "POST"}


def test_a_broken_job_is_listed_and_the_others_are_worked_off(place: Place) -> None:
    with client_of(create_app(place.settings())) as client:
        job_id = finish(client, place)
    (place.jobs / job_id / "job.json").write_text("{")
    with client_of(create_app(place.settings())) as client:
        listed = client.get("/v1/jobs").json()
        assert listed["data"] == []
        (broken,) = listed["broken"]
        assert (broken["id"], "malformed" in broken["reason"]) == (job_id, True)
        other = finish(client, place)
        assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [other]
        assert client.get("/v1/jobs", params={"after": other}).json()["broken"] == []


def test_a_job_with_a_time_limit_is_resumed_when_it_is_done(
    client: TestClient, place: Place
) -> None:
    job_id = finish(client, place, max_minutes=30)
    assert client.post(f"/v1/jobs/{job_id}/resume").json()["state"] == "queued"
    assert wait_for(client, job_id, "done")["attempts"] == 2


def test_what_was_found_so_far_is_there_while_a_job_runs(client: TestClient, place: Place) -> None:
    place.control(hold_at=1)
    job_id = create(client, place, budgets=[0.5, 0.25])
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}/schedules").json()["data"])
    found = client.get(f"/v1/jobs/{job_id}/schedules").json()["data"]
    assert [each["budget"] for each in found] == [0.5]
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}/report/").status_code == 200)
    place.control()
    wait_for(client, job_id, "done")


def test_a_service_that_could_run_no_search_does_not_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = app.find_spec
    monkeypatch.setattr(app, "find_spec", lambda name: None if name == "skopt" else there(name))
    with pytest.raises(ConfigurationError, match="searches need skopt, .* its extra `search`"):
        create_app(place.settings())
