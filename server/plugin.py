"""vLLM's way in: the entry point ``vtr`` of the group ``vllm.endpoint_plugins``."""

import logging
from argparse import Namespace
from typing import Any, ClassVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from server.choice import describe
from server.engine import Engine, install_media_connector
from server.routes import Service, refuse, refuse_http, router
from vtr_vllm.errors import VTRError
from vtr_vllm.schedules import ScheduleBook

__all__ = ["VTREndpoints"]

logger = logging.getLogger("vllm.vtr")


class VTREndpoints:
    """Puts our routes in the place of vLLM's; see vLLM's ``EndpointPlugin`` protocol."""

    name = "vtr"
    required_tasks: ClassVar[tuple[str, ...]] = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Phase A: routes and the handlers of errors."""
        install_media_connector()
        app.include_router(router)
        app.add_exception_handler(HTTPException, refuse_http)  # type: ignore[arg-type]
        app.add_exception_handler(VTRError, refuse)  # type: ignore[arg-type]

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:  # noqa: ARG002
        """Phase B: geometry and schedules; raises ScheduleError for a bad schedule file."""
        engine = Engine(engine_client, state)
        folder = engine.schedules
        geometry = engine.geometry
        book = ScheduleBook.from_folder(geometry, folder) if folder else ScheduleBook(geometry)
        state.vtr = Service(engine, book, describe(book))
        reason = await engine.why_not_in_place()
        logger.info(
            "VTR serves %s with schedules %s; reduction %s",
            geometry.fingerprint,
            ", ".join(book.names()),
            f"is NOT in place: {reason}" if reason else "is in place",
        )
