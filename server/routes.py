"""The routes: vLLM's two completion endpoints with a budget, health, and the schedules on offer."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from server.choice import Choice, choose, facts
from server.engine import (
    ChatRequest,
    Chunks,
    CompletionRequest,
    Engine,
    Failure,
    Whole,
    collect,
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from server.errors import error_body, http_error_body
from server.metrics import observe_answer, observe_outcome, observe_refusal, tier_label
from server.protocol import HEADER, Facts, parse_ask, refuse_wire_keys
from vtr_vllm.errors import EngineNotReady, UnsupportedRequest, VTRError
from vtr_vllm.schedules import ScheduleBook

__all__ = ["Service", "refuse", "refuse_http", "router"]

router = APIRouter()

_JSON_ONLY = [Depends(validate_json_request)]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}
}


@dataclass(frozen=True)
class Service:
    """What the routes need, on ``app.state.vtr``."""

    engine: Engine
    book: ScheduleBook
    offer: dict[str, Any]
    """The body of GET /v1/schedules."""


def _service(request: Request) -> Service:
    service: Service = request.app.state.vtr
    return service


@router.post("/v1/chat/completions", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """OpenAI's chat completion with a ``vtr`` field."""
    service = _service(raw_request)
    return await _answer(service, service.engine.chat, request, raw_request)


@router.post("/v1/completions", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_completion(request: CompletionRequest, raw_request: Request) -> Response:
    """OpenAI's completion with a ``vtr`` field."""
    service = _service(raw_request)
    return await _answer(service, service.engine.complete, request, raw_request)


@router.get("/v1/schedules")
async def list_schedules(raw_request: Request) -> JSONResponse:
    """What can be asked for: stored schedules, built-in forms, the range of budgets."""
    return JSONResponse(_service(raw_request).offer)


@router.get("/health")
async def health(raw_request: Request) -> Response:
    """200 if the engine lives and reduction is in place; else 503 and why."""
    reason = await _service(raw_request).engine.why_unhealthy()
    if reason is None:
        return Response(status_code=HTTPStatus.OK)
    return _error(EngineNotReady(reason))


async def refuse(_: Request, err: VTRError) -> JSONResponse:
    """The exception handler of every error of ours."""
    observe_refusal(err)
    return _error(err)


async def refuse_http(_: Request, err: HTTPException) -> JSONResponse:
    """Starlette's own errors (a body nested too deep, no such route) in OpenAI's form."""
    return JSONResponse(http_error_body(err.status_code, err.detail), err.status_code)


def _error(err: VTRError) -> JSONResponse:
    """The error in OpenAI's form, under its own status."""
    return JSONResponse(error_body(err), status_code=err.http_status)


async def _answer(
    service: Service,
    serve: Callable[[Any, Request], Awaitable[Failure | Whole | Chunks]],
    request: Any,
    raw_request: Request,
) -> Response:
    """Ask -> schedule -> vLLM's own handler -> its answer with the facts in it."""
    choice = _admit(service, request, raw_request)
    if reason := await service.engine.why_not_in_place():
        raise EngineNotReady(f"reduction is not in place: {reason}")
    with collect() as admitted:
        answer = await serve(request, raw_request)
    if isinstance(answer, Failure):
        return JSONResponse(answer.body, status_code=answer.status)
    known = facts(choice, admitted, service.engine.geometry)
    observe_answer(known)
    tier = tier_label(known.budget, known.schedule, {})
    observe_outcome("ok", tier=tier, source=known.source)
    if isinstance(answer, Whole):
        body = answer.body | {"vtr": known.model_dump()}
        return JSONResponse(body, headers=answer.headers)
    return StreamingResponse(_with_facts(answer.events, known), media_type="text/event-stream")


def _admit(service: Service, request: Any, raw_request: Request) -> Choice:
    """Check what is asked and put the schedule where vLLM passes it on to the engine."""
    ask = parse_ask(request.vtr, raw_request.headers.getlist(HEADER))
    refuse_wire_keys(request.vllm_xargs)
    choice = choose(service.book, ask)
    if choice.wire:
        if request.use_beam_search:
            raise UnsupportedRequest(
                "use_beam_search is true and a budget below 1 was asked for; beam search runs at"
                " full budget only: leave out one of them"
            )
        request.vllm_xargs = (request.vllm_xargs or {}) | choice.wire
    return choice


async def _with_facts(events: AsyncIterator[str], known: Facts) -> AsyncIterator[str]:
    """Add the facts to the chunks that end a choice and to the usage chunk."""
    tail = f',"vtr":{known.model_dump_json()}}}\n\n'
    async for event in events:
        yield event.rstrip()[:-1] + tail if _is_closing(event) else event


def _is_closing(event: str) -> bool:
    """Whether a chunk carries a finish reason, or usage and no choice."""
    if '"finish_reason":"' not in event and '"choices":[]' not in event:
        return False  # the usual chunk, told apart without parsing it
    chunk = json.loads(event.removeprefix("data: "))
    choices = chunk.get("choices", [])
    return "usage" in chunk if not choices else any(c.get("finish_reason") for c in choices)
