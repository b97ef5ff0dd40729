"""The only file of the server that imports vllm: its handlers, its engine client, its media."""

import json
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import aiohttp
from fastapi import Request
from PIL import Image
from pydantic import BaseModel, Field
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest as VLLMCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import (
    cli_env_setup,
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.entrypoints.serve.utils.orca_metrics import metrics_header
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.logger import configure_logging_from_args
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from server.errors import error_body
from server.protocol import VTRField
from vtr_vllm.engine.admission import Admitted, collect
from vtr_vllm.engine.config import EngineSettings, model_geometry
from vtr_vllm.errors import InvalidMedia, VTRError
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.schedules.strict_json import show

__all__ = [
    "Admitted",
    "ChatRequest",
    "Chunks",
    "CompletionRequest",
    "Engine",
    "Failure",
    "Whole",
    "collect",
    "install_media_connector",
    "load_aware_call",
    "run_vllm_serve",
    "validate_json_request",
    "with_cancellation",
]

_LOAD_METRICS_HEADER = "endpoint-load-metrics-format"
_VTR_FIELD = Field(
    default=None,
    description="Vision-token budget; checked by the server, unknown keys are refused.",
    json_schema_extra=VTRField.model_json_schema(),
)

_head_failures: ContextVar[list[Exception] | None] = ContextVar("vtr_head_failures", default=None)
"""Where a stream that fails before its first chunk leaves the reason; None once it has begun."""


def run_vllm_serve() -> None:
    """``vllm serve`` with this process's arguments, which begin with ``serve``."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vtr", description="vLLM's server with VTR")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    args = parser.parse_args()
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)


class ChatRequest(ChatCompletionRequest):
    """vLLM's chat request and the ``vtr`` field, unchecked: ``server.protocol`` checks it."""

    field_names: ClassVar[set[str] | None] = None  # vLLM's cache of names, not the parent's
    vtr: Any = _VTR_FIELD


class CompletionRequest(VLLMCompletionRequest):
    """vLLM's completion request and the ``vtr`` field."""

    field_names: ClassVar[set[str] | None] = None
    vtr: Any = _VTR_FIELD


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

    events: AsyncIterator[str]


_MEDIA_ERRORS = (
    aiohttp.ClientError,  # the address does not answer
    EOFError,  # EOFError to zlib.error: what Pillow raises on broken files
    Image.DecompressionBombError,
    NotImplementedError,  # data URLs without base64
    OSError,
    RuntimeError,  # file URLs without --allowed-local-media-path
    SyntaxError,
    TimeoutError,
    ValueError,
    struct.error,
    zlib.error,
)


class _CheckedMediaConnector(MediaConnector):
    """vLLM's connector, whose errors say that the image is at fault.

    vLLM answers 500 or 501 to some of them (a decompression bomb, a file URL, a host that does
    not answer), and a 500 also closes the connection that other requests may share.
    """

    def load_from_url(self, url: str, *args: Any, **kw: Any) -> Any:
        with _as_invalid_media(url):
            return super().load_from_url(url, *args, **kw)

    async def load_from_url_async(self, url: str, *args: Any, **kw: Any) -> Any:
        with _as_invalid_media(url):
            return await super().load_from_url_async(url, *args, **kw)


@contextmanager
def _as_invalid_media(url: str) -> Iterator[None]:
    try:
        yield
    except _MEDIA_ERRORS as err:
        raise InvalidMedia(
            f"image_url {show(url)} cannot be loaded ({err}); send a PNG, JPEG or WebP image as a"
            " base64 data URL, or an http(s) address that this server can reach"
        ) from err


def install_media_connector() -> None:
    """Put ours in the place of vLLM's default; a connector that the user chose stays."""
    MEDIA_CONNECTOR_REGISTRY.register("http")(_CheckedMediaConnector)


class Engine:
    """vLLM's engine client and OpenAI handlers, seen from the routes."""

    def __init__(self, client: Any, state: Any) -> None:
        self._client = client
        self._state = state
        self._in_place = False
        self.geometry: ModelGeometry = model_geometry(client.vllm_config)
        self.schedules: str | None = EngineSettings.of(client.vllm_config).schedules
        for handler in (state.openai_serving_chat, state.openai_serving_completion):
            if handler is not None:
                _tap_stream_errors(handler)

    async def why_unhealthy(self) -> str | None:
        """None if vLLM is alive and reduces; the reason otherwise."""
        try:
            await self._client.check_health()
        except EngineDeadError as err:
            return str(err)
        return await self.why_not_in_place()

    async def why_not_in_place(self) -> str | None:
        """None if every worker has the plugin loaded and its layers in place.

        Yes is remembered, since nothing takes the plugin out again; no is asked anew.
        """
        if self._in_place:
            return None
        try:
            workers = await self._client.collective_rpc("vtr_status")
        except EngineDeadError as err:
            return str(err)
        except Exception as err:  # noqa: BLE001  a failed RPC arrives as a bare Exception
            return (
                f"the workers do not know vtr_status ({err}); start with --worker-cls"
                " vtr_vllm.engine.worker.Worker"
            )
        reason = _first_reason(workers, self.geometry.layers)
        self._in_place = reason is None
        return reason

    async def chat(self, request: ChatRequest, raw_request: Request) -> Failure | Whole | Chunks:
        """vLLM's own chat completion."""
        handler = self._state.openai_serving_chat
        if handler is None:
            raise NotImplementedError("The model does not support Chat Completions API")
        return await _serve(handler.create_chat_completion, request, raw_request)

    async def complete(
        self, request: CompletionRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own completion."""
        handler = self._state.openai_serving_completion
        if handler is None:
            raise NotImplementedError("The model does not support Completions API")
        return await _serve(handler.create_completion, request, raw_request)


def _first_reason(workers: Sequence[dict[str, Any]], layers: int) -> str | None:
    """Why reduction is not in place, from what each worker reports; None if it is."""
    if not workers:
        return "no worker answered vtr_status"
    for rank, worker in enumerate(workers):
        if not worker["loaded"]:
            return f"worker {rank}: {worker['reason'] or 'the plugin is not loaded'}"
        if worker["layers"] != layers:
            return f"worker {rank} has {worker['layers']} of {layers} layers in place"
    return None


async def _serve(
    create: Callable[..., Awaitable[Any]], request: BaseModel, raw_request: Request
) -> Failure | Whole | Chunks:
    """Call a handler of vLLM's; raises what we or vLLM refused, also for a stream's first chunk."""
    try:
        answer = await create(request, raw_request)
    except EngineGenerateError as err:
        raise _cause(err) from err
    if isinstance(answer, ErrorResponse):
        return Failure(answer.error.code, answer.model_dump())
    if isinstance(answer, BaseModel):
        wanted = raw_request.headers.get(_LOAD_METRICS_HEADER, "")
        return Whole(answer.model_dump(), metrics_header(wanted))
    interval = float(getattr(raw_request.app.state.args, "sse_keep_alive_interval", 0))
    return Chunks(await _begun(with_sse_keep_alive(answer, interval)))


def _cause(err: Exception) -> Exception:
    """Our refusal, which vLLM's engine client wraps when it is raised at admission."""
    return err.__cause__ if isinstance(err.__cause__, VTRError) else err


async def _begun(events: Any) -> AsyncIterator[str]:
    """Wait for the first event, so that a refusal is an HTTP status and not an event.

    vLLM admits a streamed request when its first chunk is asked for, after the status has gone
    out. A keep-alive comment counts as an event: then the status goes out, as in vLLM.
    """
    failures: list[Exception] = []
    token = _head_failures.set(failures)
    try:
        first = await anext(events, None)
    finally:
        _head_failures.reset(token)
    if failures:
        await events.aclose()
        raise failures[0]
    return _resume(first, events)


async def _resume(first: str | None, events: Any) -> AsyncIterator[str]:
    try:
        if first is not None:
            yield first
            async for event in events:
                yield event
    finally:
        await events.aclose()


def _tap_stream_errors(handler: Any) -> None:
    """Let ``handler`` tell a stream's first failure to ``_begun`` and ours in our own form."""
    original = handler.create_streaming_error_response

    def create_streaming_error_response(message: str | Exception, *args: Any, **kw: Any) -> str:
        failure = _cause(message) if isinstance(message, Exception) else message
        if isinstance(failure, Exception) and (failures := _head_failures.get()) is not None:
            failures.append(failure)
        if isinstance(failure, VTRError):
            return json.dumps(error_body(failure))
        return original(failure, *args, **kw)

    handler.create_streaming_error_response = create_streaming_error_response
