"""The routes of the job service."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from vtr_server.gate.context import RequestContext
from vtr_server.gate.keys import hash_key
from vtr_server.gate.middleware import install
from vtr_server.http.error_handlers import CheckedRoute, install_error_handlers
from vtr_server.http.errors import http_error_body
from vtr_server.jobs.events import Watchers, check_offset, follow
from vtr_server.jobs.protocol import (
    Job,
    JobList,
    JobQuery,
    JobSpec,
    Published,
    PublishedSchedule,
    PublishRequest,
    ScheduleList,
    ScheduleSummary,
)
from vtr_server.jobs.results import load_schedules, publish, report_file
from vtr_server.jobs.runner import Runner
from vtr_server.jobs.sources import Sources
from vtr_server.jobs.store import JobStore
from vtr_server.operations.exposition import exposition
from vtr_server.policy.settings import KeySettings, ServerSettings
from vtr_vllm.errors import ConfigurationError, JobConflict, show

__all__ = ["SEARCH_COMMAND", "JobServiceSettings", "create_app", "router", "start_service"]

SEARCH_COMMAND = (sys.executable, "-P", "-m", "vtr_vllm.cli", "search")

_PUBLISHING = threading.Lock()
"""Routes that read many files run in threads; what is checked of a folder holds until it is written."""
_NEEDED = ("matplotlib", "sklearn", "skopt", "sqlalchemy")
"""Packages of a search that serving alone does not need."""

_METRICS = (
    *("vtr_jobs", "vtr_jobs_finished_total", "vtr_background_failures_total"),
    *("vtr_refused_requests_total", "vtr_in_flight_requests"),
    *("process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"),
    *("process_open_fds", "process_max_fds"),
)
"""Of a service without an engine; the other ones of a server would say that it is not ready."""

_PAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {}}}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/html": {}, "image/png": {}, "application/json": {}}}
}


@dataclass(frozen=True)
class JobServiceSettings:
    """How a service runs; ``command`` is the search, to which a job's arguments are added."""

    root: Path
    sources: Sources
    publish: Path | None = None
    token: str | None = None
    grace_seconds: float = 30.0
    command: tuple[str, ...] = SEARCH_COMMAND


@dataclass(frozen=True)
class JobService:
    """What the routes need, on ``app.state.jobs``."""

    store: JobStore
    runner: Runner
    sources: Sources
    publish: Path | None
    watchers: Watchers = field(default_factory=Watchers)

    def why_unhealthy(self) -> str | None:
        """None while every worker slot works; else what stopped one."""
        return self.runner.why_unhealthy()


def create_app(settings: JobServiceSettings) -> FastAPI:
    """The service over ``settings.root``; raises ConfigurationError if that cannot be had, or no search
    could run here.

    Its searches run from the application's start to its shutdown.
    """
    _check_installed()
    store = JobStore(settings.root)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.jobs = start_service(store, settings)
        try:
            yield
        finally:
            await service.runner.stop()
            store.close()

    app = FastAPI(title="VTR search jobs", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.get("/health")(health)
    app.get("/metrics", response_class=Response)(metrics)
    app.include_router(router)
    install_error_handlers(app)
    install(app, _gate_settings(settings.token))
    return app


def _gate_settings(token: str | None) -> ServerSettings:
    """The gate of a service that has a token: one key, for all that it has."""
    if token is None:
        return ServerSettings()
    digest = hash_key(token.strip().encode())
    return ServerSettings(
        keys=(KeySettings(name="jobs", sha256=digest, scopes=("jobs", "metrics")),)
    )


def start_service(store: JobStore, settings: JobServiceSettings) -> JobService:
    """Begin to work off the jobs of a store, on the running event loop.

    Searches end with the process, however it ends (see ``guard``), and are taken up by the next.
    Raises ConfigurationError where no search could run.
    """
    _check_installed()
    runner = Runner(store, settings.sources, settings.command, settings.grace_seconds)
    runner.start()
    return JobService(store, runner, settings.sources, settings.publish)


def _check_installed() -> None:
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigurationError(
            f"searches need {', '.join(missing)}, which this environment has not; install"
            " vtr-vllm with its extra `search`, or leave [jobs] out"
        )


def _service(request: Request) -> JobService:
    service: JobService = request.app.state.jobs
    return service


ServiceOf = Annotated[JobService, Depends(_service)]
router = APIRouter(route_class=CheckedRoute)


async def health(service: ServiceOf) -> JSONResponse:
    """200 while every worker slot works; else 503 and why."""
    reason = service.why_unhealthy()
    if reason is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse(http_error_body(503, reason), 503)


async def metrics(request: Request) -> Response:
    """The metrics of jobs and of this process, as Prometheus text or as OpenMetrics."""
    content, content_type = exposition(request.headers.get("accept", ""), _METRICS)
    return Response(content, headers={"Content-Type": content_type})


@router.post("/v1/jobs", status_code=201)
async def create_job(spec: JobSpec, service: ServiceOf, response: Response) -> Job:
    """Queue a search."""
    await asyncio.to_thread(service.sources.arguments, spec)  # refuses what may not be read
    service.runner.check_room()
    job = service.store.create(spec)
    service.runner.submit(job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/v1/jobs")
async def list_jobs(query: Annotated[JobQuery, Query()], service: ServiceOf) -> JobList:
    """A page of jobs, newest first."""
    jobs = service.store.newest(query.state, query.after)
    broken = service.store.broken if query.after is None and query.state is None else []
    return JobList(data=jobs[: query.limit], has_more=len(jobs) > query.limit, broken=broken)


@router.get("/v1/jobs/{job_id}")
async def get_job(job_id: str, service: ServiceOf) -> Job:
    """One job."""
    return service.store.get(job_id)


@router.post("/v1/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, service: ServiceOf) -> Job:
    """Cancel a queued job now, a running one once its process has stopped."""
    return service.runner.cancel(job_id)


@router.post("/v1/jobs/{job_id}/resume")
async def resume_job(job_id: str, service: ServiceOf) -> Job:
    """Queue a job again that was cancelled, failed, or had a time limit."""
    return service.runner.resume(job_id)


async def _events_from(
    job_id: str,
    service: ServiceOf,
    request: Request,
    last_event_id: Annotated[int, Header(ge=0)] = 0,
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    """A dependency, so that a refusal is an HTTP status and not the end of a stream."""
    path = service.store.folder(job_id) / "events.jsonl"
    check_offset(path, last_event_id)
    with service.watchers.place(RequestContext.of(request.scope).caller.bucket):
        yield follow(lambda: service.store.get(job_id), path, last_event_id)


@router.get("/v1/jobs/{job_id}/events", response_class=EventSourceResponse)
async def watch_job(
    events: Annotated[AsyncIterator[ServerSentEvent], Depends(_events_from)],
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events from the first, or from Last-Event-ID, until the job has ended."""
    async for event in events:
        yield event


@router.get("/v1/jobs/{job_id}/schedules")
def list_schedules(job_id: str, service: ServiceOf) -> ScheduleList:
    """The schedules that a job has found so far."""
    found = load_schedules(service.store.folder(job_id) / "out").values()
    return ScheduleList(
        data=[
            ScheduleSummary(name=s.name, method=s.method, budget=s.budget, mean_keep=s.mean_keep)
            for s in found
        ]
    )


@router.get("/v1/jobs/{job_id}/schedules/{name}")
def get_schedule(job_id: str, name: str, service: ServiceOf) -> Response:
    """One schedule, as its file."""
    found = load_schedules(service.store.folder(job_id) / "out")
    if name not in found:
        raise HTTPException(404, f"job {job_id} has no schedule {show(name)}")
    return Response(found[name].to_json(), media_type="application/json")


@router.get("/v1/jobs/{job_id}/report/", response_class=FileResponse, responses=_PAGE)
async def get_report(job_id: str, service: ServiceOf) -> FileResponse:
    """The report's page."""
    return await get_report_file(job_id, "index.html", service)


@router.get("/v1/jobs/{job_id}/report/{name}", response_class=FileResponse, responses=_FILE)
async def get_report_file(job_id: str, name: str, service: ServiceOf) -> FileResponse:
    """A file of the report: the page, a figure, or the numbers in search.json."""
    path = report_file(service.store.folder(job_id) / "out", name)
    if path is None:
        raise HTTPException(404, f"the report of job {job_id} has no file {show(name)}")
    return FileResponse(path, headers={"X-Content-Type-Options": "nosniff"})


@router.post("/v1/jobs/{job_id}/publish")
def publish_schedules(job_id: str, wanted: PublishRequest, service: ServiceOf) -> Published:
    """Write schedules of a job that is done into the folder that a server watches."""
    job = service.store.get(job_id)
    if job.state != "done":
        raise JobConflict(f"job {job_id} is {job.state}; only what a job that is done found counts")
    if service.publish is None:
        raise JobConflict(
            f"this service publishes nowhere; start it with {service.sources.names.publish}"
        )
    found = load_schedules(service.store.folder(job_id) / "out")
    with _PUBLISHING:
        files = publish(found, wanted.schedules, service.publish)
    return Published(
        data=[PublishedSchedule(name=name, file=path.name) for name, path in files.items()]
    )
