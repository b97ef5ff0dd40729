"""The routes: vLLM's endpoints that generate, with a budget; health, models and schedules."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from vtr_server.http.answer import Endpoint, GenerationService, answer
from vtr_server.http.error_handlers import refuse
from vtr_server.http.errors import engine_died, error_response, http_error_body
from vtr_server.operations.metrics import observe_ready
from vtr_server.vllm_api.engine import (
    ChatRequest,
    CompletionRequest,
    Engine,
    ResponsesRequest,
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vtr_vllm.errors import EngineNotReady

__all__ = ["refuse_dead", "router"]

router = APIRouter()

_JSON_ONLY = [Depends(validate_json_request)]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}
}


def _service(request: Request) -> GenerationService:
    service: GenerationService = request.app.state.vtr
    return service


@router.post("/v1/chat/completions", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """OpenAI's chat completion with a ``vtr`` field."""
    return await answer(_service(raw_request), _CHAT, request, raw_request)


@router.post("/v1/completions", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_completion(request: CompletionRequest, raw_request: Request) -> Response:
    """OpenAI's completion with a ``vtr`` field."""
    return await answer(_service(raw_request), _COMPLETION, request, raw_request)


@router.post("/v1/responses", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_response(request: ResponsesRequest, raw_request: Request) -> Response:
    """OpenAI's Responses API with a ``vtr`` field."""
    return await answer(_service(raw_request), _RESPONSE, request, raw_request)


@router.get("/v1/models")
async def list_models(raw_request: Request) -> JSONResponse:
    """vLLM's models, and each behind each alias that asks for a budget."""
    service = _service(raw_request)
    return JSONResponse(await service.engine.models(service.schedules.offer.aliases))


@router.get("/v1/schedules")
async def list_schedules(raw_request: Request) -> JSONResponse:
    """What can be asked for: stored schedules, built-in forms, tiers, the range of budgets."""
    return JSONResponse(_service(raw_request).schedules.offer.description)


@router.get("/health", response_class=Response)
async def health(raw_request: Request) -> Response:
    """200 if the engine lives, reduction is in place and jobs are worked off; else 503 and why."""
    found = await ready(raw_request)
    jobs = getattr(raw_request.app.state, "jobs", None)
    if found.status_code != HTTPStatus.OK or jobs is None or (why := jobs.why_unhealthy()) is None:
        return found
    return JSONResponse(http_error_body(503, f"[jobs]: {why}"), 503)


async def ready(raw_request: Request) -> Response:
    """200 if requests can be answered; else 503 and why."""
    reason = await _service(raw_request).engine.why_unhealthy()
    observe_ready(reason is None)
    if reason is None:
        return Response(status_code=HTTPStatus.OK)
    return error_response(EngineNotReady(reason))


async def refuse_dead(request: Request, _: Exception) -> JSONResponse:
    """A dead engine in the same form, on those routes too that stayed vLLM's."""
    return await refuse(request, engine_died())


_CHUNK_ENDS = ('"finish_reason":"', '"choices":[]')


def _closing_chunk(chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A chunk that carries a finish reason, or usage and no choice."""
    choices = chunk.get("choices", [])
    ends = any(c.get("finish_reason") for c in choices) if choices else "usage" in chunk
    return chunk if ends else None


_EVENT_ENDS = (
    "event: response.completed",
    "event: response.incomplete",
    "event: response.failed",
)


def _closing_event(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The response inside the event that ends a stream of the Responses API."""
    response: Mapping[str, Any] | None = event.get("response")
    return response


def _parts(messages: Any) -> Iterable[Mapping[str, Any]]:
    """The parts of all messages, of whatever type a message is."""
    for message in messages if isinstance(messages, list) else ():
        get = (
            message.get
            if isinstance(message, Mapping)
            else lambda name, m=message: getattr(m, name, None)
        )
        content = get("content")
        for part in content if isinstance(content, list) else ():
            yield part if isinstance(part, Mapping) else vars(part)


def _details(parts: Iterable[Mapping[str, Any]], place: str) -> list[str]:
    """What the images say of their detail; ``place`` is where a part has it."""
    found = []
    for part in parts:
        value = part.get(place)
        value = value.get("detail") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            found.append(value)
    return found


_CHAT = Endpoint(
    serve=Engine.chat,
    details=lambda request: _details(_parts(request.messages), "image_url"),
    usage="prompt_tokens_details",
    closes=_closing_chunk,
    may_close=_CHUNK_ENDS,
)
_COMPLETION = Endpoint(
    serve=Engine.complete,
    details=lambda _: [],
    usage="prompt_tokens_details",
    closes=_closing_chunk,
    may_close=_CHUNK_ENDS,
)
_RESPONSE = Endpoint(
    serve=Engine.respond,
    details=lambda request: _details(_parts(request.input), "detail"),
    usage="input_tokens_details",
    closes=_closing_event,
    may_close=_EVENT_ENDS,
)
