"""What vLLM's handlers answer: whole, a stream that has begun, or a failure."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

from fastapi import Request
from pydantic import BaseModel
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.orca_metrics import metrics_header
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from vtr_server.http.errors import engine_died, error_body
from vtr_vllm.engine.frontend.admission import has_admitted
from vtr_vllm.errors import RequestError, VTRError

_LOAD_METRICS_HEADER = "endpoint-load-metrics-format"
_STUMBLES = (AssertionError, AttributeError, IndexError, KeyError, RecursionError)
"""What vLLM raises, for a fault of its own, where a body is not as it thinks while it reads it."""

logger = logging.getLogger("vllm.vtr")

_head_failures: ContextVar[list[Exception] | None] = ContextVar("vtr_head_failures", default=None)
"""Where a stream that fails before its first chunk leaves the reason; None once it has begun."""


@dataclass(frozen=True)
class Failure:
    """An answer of vLLM's that is an error already in OpenAI's form."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """A complete answer."""

    body: dict[str, Any]
    headers: dict[str, str] | None


@dataclass(frozen=True)
class Chunks:
    """A stream of server-sent events that has begun."""

    events: AsyncGenerator[str, None]


async def serve(
    create: Callable[..., Awaitable[Any]],
    request: BaseModel,
    raw_request: Request,
    *,
    without_none: bool = False,
) -> Failure | Whole | Chunks:
    """Call a handler of vLLM's; raises what we or vLLM refused, also for a stream's first chunk.

    ``without_none``: a whole answer has no field that holds nothing.
    """
    try:
        answer = await create(request, raw_request)
    except (EngineDeadError, EngineGenerateError) as err:
        _raise_cause(err)
    except _STUMBLES as err:
        if has_admitted():
            raise
        logger.warning("no prompt can be made of a request", exc_info=err)
        raise RequestError(
            f"no prompt can be made of this request ({err}); check the types of its fields, and"
            " whether truncate_prompt_tokens or chat_template takes the place of an image away"
        ) from err
    if isinstance(answer, ErrorResponse):
        if answer.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("VTR: vLLM could not answer a request: %s", answer.error.message)
        return Failure(answer.error.code, answer.model_dump())
    if isinstance(answer, BaseModel):
        wanted = raw_request.headers.get(_LOAD_METRICS_HEADER, "")
        body = answer.model_dump(mode="json", by_alias=True, exclude_none=without_none)
        return Whole(body, metrics_header(wanted))
    interval = float(getattr(raw_request.app.state.args, "sse_keep_alive_interval", 0))
    return Chunks(await _begun(with_sse_keep_alive(answer, interval)))


async def as_sse(events: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Events of the Responses API as vLLM's route writes them; a dead engine is one too."""
    number = -1
    try:
        async for event in events:
            number = event.sequence_number
            data = event.model_dump_json(indent=None, by_alias=True)
            yield f"event: {event.type}\ndata: {data}\n\n"
    except EngineDeadError:
        if _head_failures.get() is not None:
            raise  # nothing has gone out: it becomes a status
        place = {"type": "error", "sequence_number": number + 1}
        yield f"event: error\ndata: {json.dumps(error_body(engine_died())['error'] | place)}\n\n"


async def _raising(chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Chunks of a chat, of which one that is an error is raised."""
    try:
        async for chunk in chunks:
            if chunk.startswith('data: {"error"'):
                raise VTRError(json.loads(chunk.removeprefix("data: "))["error"]["message"])
            yield chunk
    finally:
        await chunks.aclose()


def tap_message_errors(handler: Any) -> None:
    """Let a stream of Anthropic's API end with the error of the chat that it is made from.

    vLLM's converter knows no chunk that is an error, and says only that it is none.
    """
    convert = handler.message_stream_converter
    handler.message_stream_converter = lambda chunks: convert(_raising(chunks))


def _raise_cause(err: Exception) -> NoReturn:
    if (cause := cause_of(err)) is err:
        raise err  # from nothing: its own cause is logged where it becomes a status
    raise cause from err


def cause_of(err: Exception) -> Exception:
    """What a failure of vLLM's means: the engine is dead, or our refusal, raised at admission."""
    if isinstance(err, EngineDeadError):
        return engine_died()
    return err.__cause__ if isinstance(err.__cause__, VTRError) else err


async def _begun(events: Any) -> AsyncGenerator[str, None]:
    """Wait until the engine has admitted the request, so that a refusal is an HTTP status.

    vLLM admits a streamed request when its first chunk (of the Responses API: its third) is asked
    for, after the status has gone out. A keep-alive comment ends the wait: then the status goes
    out, as in vLLM.
    """
    failures: list[Exception] = []
    token = _head_failures.set(failures)
    head: list[str] = []
    try:
        async for event in events:
            head.append(event)
            if failures or has_admitted() or event.startswith(":"):
                break
    except (EngineDeadError, EngineGenerateError) as err:
        _raise_cause(err)
    finally:
        _head_failures.reset(token)
    if failures:
        await events.aclose()
        raise failures[0]
    return _resume(head, events)


async def _resume(head: list[str], events: Any) -> AsyncGenerator[str, None]:
    try:
        for event in head:
            yield event
        async for event in events:
            yield event
    finally:
        await events.aclose()


def tap_stream_errors(handler: Any) -> None:
    """Let ``handler`` tell a stream's first failure to ``_begun`` and ours in our own form."""
    original = handler.create_streaming_error_response

    def create_streaming_error_response(message: str | Exception, *args: Any, **kw: Any) -> str:
        failure = cause_of(message) if isinstance(message, Exception) else message
        if isinstance(failure, Exception) and (failures := _head_failures.get()) is not None:
            failures.append(failure)
        if isinstance(failure, VTRError):
            return json.dumps(error_body(failure))
        return original(failure, *args, **kw)

    handler.create_streaming_error_response = create_streaming_error_response
