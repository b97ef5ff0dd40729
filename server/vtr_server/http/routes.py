"""The routes: vLLM's endpoints that generate, with a budget; health, models and schedules."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from vtr_server.gate.context import RequestContext
from vtr_server.gate.scopes import route_path
from vtr_server.http.answer import GenerationService, answer
from vtr_server.http.endpoints import BATCH, CHAT, COMPLETION, MESSAGES, RESPONSE
from vtr_server.http.error_handlers import CheckedRoute, refuse
from vtr_server.http.errors import error_response, http_error_body, in_form_of
from vtr_server.policy.requested_budget import (
    ALIAS,
    Bounds,
    bounds,
    default_budget,
    split_alias,
)
from vtr_server.policy.settings import KeySettings
from vtr_server.vllm_api.engine import (
    BatchRequest,
    ChatRequest,
    CompletionRequest,
    CountTokensRequest,
    Failure,
    MessagesRequest,
    ResponsesRequest,
    Whole,
    cause_of,
    load_aware_call,
    validate_json_request,
    vllm_error_handler,
    with_cancellation,
)
from vtr_server.vllm_api.sagemaker import ADAPTER
from vtr_vllm.errors import RequestError, UnknownModel, VTRError, show
from vtr_vllm.faults import first_fault

__all__ = ["check_json_object", "invocations", "refuse_engine_error", "router"]

logger = logging.getLogger("vllm.vtr")

router = APIRouter()
_anthropics = APIRouter(route_class=CheckedRoute)

_JSON_ONLY = [Depends(validate_json_request)]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}
}


def _service(request: Request) -> GenerationService:
    service: GenerationService = request.app.state.vtr
    return service


def _key(request: Request) -> KeySettings | None:
    return RequestContext.of(request.scope).caller.key


def _policy(request: Request) -> Bounds:
    """What the caller may ask for."""
    return bounds(_service(request).settings, _key(request))


@router.post("/v1/chat/completions", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """OpenAI's chat completion with a ``vtr`` field."""
    return await answer(_service(raw_request), CHAT, request, raw_request)


@router.post("/v1/completions", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_completion(request: CompletionRequest, raw_request: Request) -> Response:
    """OpenAI's completion with a ``vtr`` field."""
    return await answer(_service(raw_request), COMPLETION, request, raw_request)


@router.post("/v1/responses", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_response(request: ResponsesRequest, raw_request: Request) -> Response:
    """OpenAI's Responses API with a ``vtr`` field."""
    return await answer(_service(raw_request), RESPONSE, request, raw_request)


@router.post("/v1/chat/completions/batch", dependencies=_JSON_ONLY)
@with_cancellation
@load_aware_call
async def create_batch(request: BatchRequest, raw_request: Request) -> Response:
    """vLLM's chat completion of several conversations with a ``vtr`` field, which holds for each."""
    if getattr(request, "stream", False):
        raise RequestError("stream is true; a batch is answered in one piece: leave it out")
    return await answer(_service(raw_request), BATCH, request, raw_request)


@_anthropics.post("/v1/messages", dependencies=_JSON_ONLY, responses=_RESPONSES)
@with_cancellation
@load_aware_call
async def create_message(request: MessagesRequest, raw_request: Request) -> Response:
    """Anthropic's Messages API with a ``vtr`` field."""
    return await answer(_service(raw_request), MESSAGES, request, raw_request)


@_anthropics.post("/v1/messages/count_tokens", dependencies=_JSON_ONLY)
@with_cancellation
@load_aware_call
async def count_tokens(request: CountTokensRequest, raw_request: Request) -> Response:
    """The tokens of a message's prompt; no budget changes their number, in a model's name neither."""
    engine = _service(raw_request).engine
    request.model = split_alias(request.model, engine.served_models())[0] or request.model
    found = await engine.count_tokens(request, raw_request)
    if isinstance(found, Failure):
        body = in_form_of(route_path(raw_request.scope), found.status, found.body)
        return JSONResponse(body, found.status)
    assert isinstance(found, Whole)
    return JSONResponse(found.body)


router.include_router(_anthropics)


async def check_json_object(raw_request: Request) -> None:
    """Check the body of a request that nothing has read yet; raises RequestError where it is no object."""
    await validate_json_request(raw_request)
    try:
        body = await raw_request.json()
    except (ValueError, RecursionError) as err:
        raise RequestError(f"the body is no JSON that can be read: {err}") from err
    if not isinstance(body, dict):
        raise RequestError(f"the body is {show(body)}; send an object")


@router.post("/invocations", dependencies=[Depends(check_json_object)])
async def invocations(raw_request: Request) -> Response:
    """SageMaker's route: the body of a chat or of a completion, as on its own route."""
    body = await raw_request.json()  # checked, and kept by the request
    kind = next((kind for name, kind in _INVOKED.items() if name in body), None)
    if kind is None:
        raise RequestError(
            f"the body has the keys {show(sorted(body)[:8])}; send messages, for a chat, or a prompt"
        )
    if adapter := raw_request.headers.get(ADAPTER):
        _, wish = split_alias(body.get("model"), _service(raw_request).engine.served_models())
        body = body | {"model": adapter if wish is None else f"{adapter}{ALIAS}{wish}"}
    try:
        request = kind.model_validate(body)
    except ValidationError as err:
        raise RequestError(first_fault(err, "body", given=True)) from err
    create = create_chat_completion if kind is ChatRequest else create_completion
    response: Response = await create(request, raw_request=raw_request)
    return response


_INVOKED: dict[str, type[ChatRequest] | type[CompletionRequest]] = {
    "messages": ChatRequest,
    "prompt": CompletionRequest,
    "prompt_embeds": CompletionRequest,
}


@router.get("/v1/models")
async def list_models(raw_request: Request) -> JSONResponse:
    """vLLM's models, and each behind each alias that asks for a budget which the caller may have."""
    service = _service(raw_request)
    aliases = service.schedules.offer.aliases_within(_policy(raw_request))
    return JSONResponse(await service.engine.models(aliases))


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, raw_request: Request) -> JSONResponse:
    """One of these models, by its name or by any alias that can be asked for, listed or not."""
    service = _service(raw_request)
    offer, policy = service.schedules.offer, _policy(raw_request)
    _, wish = split_alias(model_id, service.engine.served_models())
    unlisted = [wish] if wish is not None and offer.has_alias(wish, policy) else []
    models = await service.engine.models([*offer.aliases_within(policy), *unlisted])
    for card in models["data"]:
        if card["id"] == model_id:
            return JSONResponse(card)
    raise UnknownModel(f"the model {show(model_id)} does not exist; GET /v1/models lists what does")


@router.get("/v1/schedules")
async def list_schedules(raw_request: Request) -> JSONResponse:
    """What can be asked for: stored schedules, built-in forms, tiers, the range of budgets."""
    service = _service(raw_request)
    default = default_budget(service.settings, _key(raw_request))
    return JSONResponse(service.schedules.offer.described(_policy(raw_request), default))


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
    err = await _service(raw_request).engine.why_unhealthy()
    return Response(status_code=HTTPStatus.OK) if err is None else error_response(err)


async def refuse_engine_error(request: Request, err: Exception) -> Response:
    """What the engine raises, on those routes too that stayed vLLM's: it is dead, or we have refused."""
    cause = cause_of(err)
    if isinstance(cause, VTRError):
        return await refuse(request, cause)
    logger.error("VTR: a request failed in the engine's front end", exc_info=err.__cause__ or err)
    response: Response = await vllm_error_handler(request, err)
    return response
