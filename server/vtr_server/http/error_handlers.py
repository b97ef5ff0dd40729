"""Where errors become answers, for the routes of the server and of the job service alike."""

import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from vtr_server.gate.scopes import route_path
from vtr_server.http.errors import error_response, http_error_body, in_form_of, is_openais
from vtr_server.operations.metrics import observe_refusal
from vtr_vllm.errors import RequestError, VTRError
from vtr_vllm.faults import first_fault

__all__ = ["CheckedRoute", "install_error_handlers", "refuse"]

logger = logging.getLogger("vllm.vtr")


class CheckedRoute(APIRoute):
    """A route of ours, whose faulty bodies and queries are refused in our words, and whose errors, vLLM's
    too, have the form of its API.

    Not by handlers of the application: vLLM puts its own in their place.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own; RequestError for the first fault of a body or query."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as err:
                (first, *_) = err.errors()
                is_text = isinstance(first, str)  # of vLLM's check of the Content-Type
                raise RequestError(first if is_text else first_fault(err, given=True)) from err
            except Exception as err:
                handler = _handler_of(request, err)
                if is_openais(route_path(request.scope)) or handler is None:
                    raise
                return _in_form(request, await handler(request, err))

        return checked


def _handler_of(request: Request, err: Exception) -> Any:
    """The application's handler of an error, ours or vLLM's; None where the gate is to answer."""
    handlers = request.app.exception_handlers
    kinds = type(err).__mro__[: type(err).__mro__.index(Exception)]
    return next((handlers[kind] for kind in kinds if kind in handlers), None)


def _in_form(request: Request, answer: Response) -> Response:
    """An error that vLLM answers in OpenAI's form, in that of the API at the path."""
    body = json.loads(bytes(answer.body))
    if "error" not in body or "type" in body:
        return answer
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    body = in_form_of(route_path(request.scope), answer.status_code, body)
    return JSONResponse(body, answer.status_code, headers)


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
