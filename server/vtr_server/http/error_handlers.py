"""Where errors become answers, for the routes of the server and of the job service alike."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from vtr_server.gate.scopes import route_path
from vtr_server.http.errors import error_response, http_error_body, in_form_of
from vtr_server.operations.metrics import observe_refusal
from vtr_vllm.errors import RequestError, VTRError
from vtr_vllm.schedules.strict_json import show

__all__ = ["CheckedRoute", "install_error_handlers", "refuse"]

logger = logging.getLogger("vllm.vtr")


class CheckedRoute(APIRoute):
    """A route of ours, whose faulty bodies and queries are refused in our words.

    Not by a handler of the application: vLLM puts its own in that place.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, which raises RequestError for the first fault."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as err:
                fault = err.errors()[0]
                place = ".".join(map(str, fault["loc"]))
                raise RequestError(f"{place}: {fault['msg']}; got {show(fault['input'])}") from err

        return checked


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of ours, and Starlette's own, in OpenAI's form."""
    app.add_exception_handler(VTRError, refuse)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _refuse_http)  # type: ignore[arg-type]


async def refuse(request: Request, err: VTRError) -> JSONResponse:
    """An error of ours, under its own status."""
    observe_refusal(err)
    if type(err) is VTRError:  # an invariant of ours is broken
        logger.error("VTR: a request met a broken invariant", exc_info=err)
    return error_response(err, route_path(request.scope))


async def _refuse_http(request: Request, err: HTTPException) -> JSONResponse:
    """Starlette's own errors: a body nested too deep, no such route, another method."""
    body = http_error_body(err.status_code, err.detail)
    body = in_form_of(route_path(request.scope), err.status_code, body)
    return JSONResponse(body, err.status_code, err.headers)
