"""What operators ask of a running server, and the port of its own that it can have.

With ``[admin]`` a second listener in the same event loop hands these paths to the same application;
the gate answers 404 to them on the main port. So metrics, health and admin routes are one and the
same on both, and a firewall can tell them apart.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from vtr_server.gate.context import RequestContext
from vtr_server.gate.middleware import Gate
from vtr_server.gate.scopes import is_for_admin_port, route_path
from vtr_server.http.errors import http_error_body
from vtr_server.http.routes import ready
from vtr_server.operations.background import Background
from vtr_server.operations.exposition import exposition, requests_inside
from vtr_server.policy.settings import AdminSettings, ServerSettings
from vtr_vllm.errors import ConfigurationError, Forbidden

__all__ = ["AdminServer", "router", "start_admin"]

logger = logging.getLogger("vllm.vtr")


def _not_from_a_page(request: Request) -> None:
    """A browser sends Origin with what a page makes it send: no operator's tool does."""
    if "origin" in request.headers:
        raise Forbidden("admin routes are not for pages in browsers; send no Origin header")


router = APIRouter()
_admin = APIRouter(prefix="/admin", dependencies=[Depends(_not_from_a_page)])


def _gate(request: Request) -> Gate:
    gate: Gate = request.app.state.vtr_gate
    return gate


GateOf = Annotated[Gate, Depends(_gate)]


@_admin.get("/settings")
async def show_settings(gate: GateOf) -> dict[str, Any]:
    """The settings in use; of the keys everything but their hashes."""
    return describe_settings(gate.settings)


@_admin.post("/schedules/reload")
async def reload_schedules(request: Request) -> dict[str, list[str]]:
    """Read the schedule folder now; ``rejected`` says what was wrong with which file."""
    return {"rejected": await asyncio.to_thread(request.app.state.vtr.schedules.reload)}


@_admin.post("/settings/reload")
async def reload_settings(request: Request) -> dict[str, list[str]]:
    """Read the settings file now; ``rejected`` says what was wrong, or waits for a restart."""
    return {"rejected": await request.app.state.vtr_settings.reload()}


@_admin.post("/drain")
async def drain(gate: GateOf) -> dict[str, Any]:
    """Take nothing new from now on; what is in flight finishes. Only a restart takes it back.

    Of several API server processes all drain, and ``in_flight`` is of all.
    """
    gate.begin_draining()
    shared = gate.draining.is_shared
    return {
        "draining": True,
        "in_flight": requests_inside() if shared else gate.occupancy.in_flight,
    }


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """vLLM's metrics and ours, as Prometheus text or as OpenMetrics."""
    names = request.query_params.getlist("name[]")
    content, content_type = exposition(request.headers.get("accept", ""), names)
    return Response(content, headers={"Content-Type": content_type})


@router.get("/live", response_class=Response)
async def live() -> Response:
    """200 as long as this process answers: what fails here is mended by a restart only."""
    return Response(status_code=200)


router.add_api_route("/ready", ready, methods=["GET"], response_class=Response)
router.include_router(_admin)


def describe_settings(settings: ServerSettings) -> dict[str, Any]:
    """ServerSettings without what is secret: the hash of a key lets nobody in, but is nobody's business."""
    described: dict[str, Any] = settings.model_dump(mode="json")
    for key in described["keys"]:
        del key["sha256"]
    return described


class AdminServer(uvicorn.Server):
    """A listener that leaves signals to the main server, and ends with its event loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class AdminPort:
    """Passes on the paths of the admin port, marked as such; 404 to all others."""

    def __init__(self, app: FastAPI) -> None:
        self._app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_for_admin_port(route_path(scope)):
            marked = RequestContext(on_admin_port=True).put_into(scope)
            await self._app(marked, receive, send)
            return
        await JSONResponse(http_error_body(404, "Not Found"), 404)(scope, receive, send)


async def start_admin(app: FastAPI, settings: ServerSettings, rank: int = 0) -> int | None:
    """Listen on the admin port; returns its number, None if there is none to listen on.

    Of several API server processes the one of rank 0 listens. Raises ConfigurationError if the
    address cannot be had.
    """
    if settings.admin is None or rank != 0:
        return None
    admin, bound = settings.admin, _bind(settings.admin)
    config = uvicorn.Config(
        AdminPort(app), log_config=None, access_log=False, lifespan="off", ws="none"
    )

    async def listen() -> None:
        nonlocal bound
        if bound.fileno() < 0:  # closed with the listener that failed
            bound = _bind(admin)
        await AdminServer(config).serve(sockets=[bound])

    background = app.state.vtr_admin = Background()
    background.start("admin", listen)
    port: int = bound.getsockname()[1]
    logger.info("VTR's admin port is %s:%d", settings.admin.host, port)
    return port


def _bind(admin: AdminSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in admin.host else socket.AF_INET
    try:
        return socket.create_server((admin.host, admin.port), family=family)
    except OSError as err:
        raise ConfigurationError(
            f"admin host {admin.host!r} port {admin.port} cannot be listened on ({err.strerror});"
            " give another in [admin]"
        ) from err
