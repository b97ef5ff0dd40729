"""The routes of the job service."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from vtr_server.http.errors import error_body, http_error_body
from vtr_server.jobs.auth import BearerToken
from vtr_server.jobs.events import check_offset, follow
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
from vtr_vllm.errors import JobConflict, RequestError, VTRError
from vtr_vllm.schedules.strict_json import show

__all__ = ["SEARCH_COMMAND", "JobServiceSettings", "create_app", "router", "start_service"]

SEARCH_COMMAND = (sys.executable, "-m", "vtr_vllm.cli", "search")


@dataclass(frozen=True)
class JobServiceSettings:
    """How a service runs; ``command`` is the search, to which a job's arguments are added."""

    root: Path
    sources: Sources
    publish: Path | None = None
    token: str | None = None
    workers: int = 1
    grace_seconds: float = 30.0
    command: tuple[str, ...] = SEARCH_COMMAND


@dataclass(frozen=True)
class JobService:
    """What the routes need, on ``app.state.jobs``."""

    store: JobStore
    runner: Runner
    sources: Sources
    publish: Path | None


def create_app(settings: JobServiceSettings) -> FastAPI:
    """The service over ``settings.root``; raises ConfigurationError if that cannot be had.

    Its searches run from the application's start to its shutdown.
    """
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
    app.include_router(router)
    app.add_exception_handler(VTRError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse_http)
    if settings.token is not None:
        app.add_middleware(BearerToken, token=settings.token)
    return app


def start_service(store: JobStore, settings: JobServiceSettings) -> JobService:
    """Begin to work off the jobs of a store, on the running event loop.

    Searches end with the process, however it ends (see ``guard``), and are taken up by the next.
    """
    runner = Runner(
        store, settings.sources, settings.command, settings.workers, settings.grace_seconds
    )
    runner.start()
    return JobService(store, runner, settings.sources, settings.publish)


def _service(request: Request) -> JobService:
    service: JobService = request.app.state.jobs
    return service


ServiceOf = Annotated[JobService, Depends(_service)]
router = APIRouter()


async def health(service: ServiceOf) -> JSONResponse:
    """200 while every worker slot works; else 503 and why."""
    reason = service.runner.why_unhealthy()
    if reason is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse(http_error_body(503, reason), 503)


@router.post("/v1/jobs", status_code=201)
async def create_job(spec: JobSpec, service: ServiceOf, response: Response) -> Job:
    """Queue a search."""
    service.sources.arguments(spec)  # refuses what may not be read
    job = service.store.create(spec)
    service.runner.submit(job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/v1/jobs")
async def list_jobs(query: Annotated[JobQuery, Query()], service: ServiceOf) -> JobList:
    """A page of jobs, newest first."""
    jobs = service.store.newest(query.state, query.after)
    return JobList(data=jobs[: query.limit], has_more=len(jobs) > query.limit)


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
    """Queue a cancelled or failed job again."""
    return service.runner.resume(job_id)


async def _events_from(
    job_id: str, service: ServiceOf, last_event_id: Annotated[int, Header(ge=0)] = 0
) -> AsyncIterator[ServerSentEvent]:
    """A dependency, so that a refusal is an HTTP status and not the end of a stream."""
    path = service.store.folder(job_id) / "events.jsonl"
    check_offset(path, last_event_id)
    return follow(lambda: service.store.get(job_id), path, last_event_id)


@router.get("/v1/jobs/{job_id}/events", response_class=EventSourceResponse)
async def watch_job(
    events: Annotated[AsyncIterator[ServerSentEvent], Depends(_events_from)],
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events from the first, or from Last-Event-ID, until the job has ended."""
    async for event in events:
        yield event


@router.get("/v1/jobs/{job_id}/schedules")
async def list_schedules(job_id: str, service: ServiceOf) -> ScheduleList:
    """The schedules that a job has found so far."""
    found = load_schedules(service.store.folder(job_id) / "out").values()
    return ScheduleList(
        data=[
            ScheduleSummary(name=s.name, method=s.method, budget=s.budget, mean_keep=s.mean_keep)
            for s in found
        ]
    )


@router.get("/v1/jobs/{job_id}/schedules/{name}")
async def get_schedule(job_id: str, name: str, service: ServiceOf) -> Response:
    """One schedule, as its file."""
    found = load_schedules(service.store.folder(job_id) / "out")
    if name not in found:
        raise HTTPException(404, f"job {job_id} has no schedule {show(name)}")
    return Response(found[name].to_json(), media_type="application/json")


@router.get("/v1/jobs/{job_id}/report/")
async def get_report(job_id: str, service: ServiceOf) -> FileResponse:
    """The report's page."""
    return await get_report_file(job_id, "index.html", service)


@router.get("/v1/jobs/{job_id}/report/{name}")
async def get_report_file(job_id: str, name: str, service: ServiceOf) -> FileResponse:
    """A file of the report: the page, a figure, or the numbers in search.json."""
    path = report_file(service.store.folder(job_id) / "out", name)
    if path is None:
        raise HTTPException(404, f"the report of job {job_id} has no file {show(name)}")
    return FileResponse(path, headers={"X-Content-Type-Options": "nosniff"})


@router.post("/v1/jobs/{job_id}/publish")
async def publish_schedules(job_id: str, wanted: PublishRequest, service: ServiceOf) -> Published:
    """Write schedules of a job that is done into the folder that a server watches."""
    job = service.store.get(job_id)
    if job.state != "done":
        raise JobConflict(f"job {job_id} is {job.state}; only what a job that is done found counts")
    if service.publish is None:
        raise JobConflict("this service publishes nowhere; start it with --publish FOLDER")
    found = load_schedules(service.store.folder(job_id) / "out")
    files = publish(found, wanted.schedules, service.publish)
    return Published(
        data=[PublishedSchedule(name=name, file=path.name) for name, path in files.items()]
    )


async def _refuse(_: Request, err: Exception) -> JSONResponse:
    """Every error of ours in OpenAI's form, under its own status."""
    assert isinstance(err, VTRError)
    return JSONResponse(error_body(err), err.http_status)


async def _refuse_invalid(request: Request, err: Exception) -> JSONResponse:
    """What a model refused: the first fault, with its place and the value."""
    assert isinstance(err, RequestValidationError)
    fault: dict[str, Any] = err.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return await _refuse(
        request, RequestError(f"{place}: {fault['msg']}; got {show(fault['input'])}")
    )


async def _refuse_http(_: Request, err: Exception) -> JSONResponse:
    """FastAPI's own errors, such as for a route that does not exist."""
    assert isinstance(err, HTTPException)
    return JSONResponse(http_error_body(err.status_code, err.detail), err.status_code, err.headers)
