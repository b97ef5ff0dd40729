"""vLLM's handlers and its engine client, as the routes see them."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard, ModelPermission
from vllm.entrypoints.serve.utils.api_utils import (
    cli_env_setup,
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.entrypoints.serve.utils.orca_metrics import metrics_header
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from server.bodies import ChatRequest, CompletionRequest, ResponsesRequest
from server.errors import engine_died, error_body
from vtr_vllm.engine.common.config import EngineSettings, band_starts, model_geometry
from vtr_vllm.engine.common.kv_report import KVReport
from vtr_vllm.engine.frontend.admission import Admitted, collect, has_admitted
from vtr_vllm.engine.frontend.engine_queries import counters, kv_report, take_trace
from vtr_vllm.engine.frontend.load_logger import LOAD
from vtr_vllm.errors import RequestError, VTRError
from vtr_vllm.schedules import ModelGeometry

__all__ = [
    "LOAD",
    "Admitted",
    "ChatRequest",
    "Chunks",
    "CompletionRequest",
    "Engine",
    "EngineDeadError",
    "Failure",
    "ResponsesRequest",
    "Whole",
    "collect",
    "first_token",
    "load_aware_call",
    "run_vllm_serve",
    "validate_json_request",
    "with_cancellation",
]

_LOAD_METRICS_HEADER = "endpoint-load-metrics-format"
_STUMBLES = (AssertionError, AttributeError, IndexError, KeyError, RecursionError)
"""What vLLM raises, for a fault of its own, where a body is not as it thinks while it reads it."""

logger = logging.getLogger("vllm.vtr")

_on_first_token: ContextVar[Callable[[], None] | None] = ContextVar("vtr_first", default=None)
"""What to call when a request that was begun in this context has its first token."""

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


class Engine:
    """vLLM's engine client and OpenAI handlers, seen from the routes."""

    def __init__(self, client: Any, state: Any) -> None:
        self._client = client
        self._state = state
        self._in_place = False
        self.geometry: ModelGeometry = model_geometry(client.vllm_config)
        folder = EngineSettings.of(client.vllm_config).schedules
        self.schedules: Path | None = Path(folder) if folder else None
        self.band_starts = band_starts(
            self.geometry.layers, EngineSettings.of(client.vllm_config).bands
        )
        _tap_first_tokens(client)
        for handler in (state.openai_serving_chat, state.openai_serving_completion):
            if handler is not None:
                _tap_stream_errors(handler)

    @property
    def process_rank(self) -> int:
        """Which of several API server processes this is; 0 tells what the engine knows once."""
        return int(self._client.vllm_config.parallel_config._api_process_rank)

    @property
    def process_count(self) -> int:
        """How many API server processes there are."""
        return int(self._client.vllm_config.parallel_config._api_process_count)

    @property
    def image_processor(self) -> dict[str, Any]:
        """The Hugging Face configuration of the model's image processor; empty without one."""
        config: dict[str, Any] = self._client.vllm_config.model_config.hf_image_processor_config
        return config or {}

    def served_models(self) -> list[str]:
        """The names that requests may use: of the base model, and of LoRA adapters."""
        models = self._state.openai_serving_models
        names = [path.name for path in models.base_model_paths]
        return [*names, *models.lora_requests]

    async def models(self, aliases: Sequence[str]) -> dict[str, Any]:
        """The body of GET /v1/models: vLLM's, and each base model behind each alias."""
        listed = await self._state.openai_serving_models.show_available_models()
        base = [card for card in listed.data if card.parent is None]
        listed.data += [
            ModelCard(
                id=f"{card.id}@{alias}",
                root=card.root,
                parent=card.id,
                max_model_len=card.max_model_len,
                permission=[ModelPermission()],
            )
            for card in base
            for alias in aliases
        ]
        return listed.model_dump()

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

    async def respond(
        self, request: ResponsesRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own Responses API."""
        handler = self._state.openai_serving_responses
        if handler is None:
            raise NotImplementedError("The model does not support Responses API")

        async def create(request: Any, raw_request: Any) -> Any:
            answer = await handler.create_responses(request, raw_request)
            return _as_sse(answer) if isinstance(answer, AsyncIterator) else answer

        return await _serve(create, request, raw_request)

    async def report(self) -> tuple[KVReport, dict[str, float]]:
        """KV blocks, and the workers' counters; raises EngineNotReady."""
        return await kv_report(self._client), await counters(self._client)

    async def trace(self, trace: str, admitted: Sequence[Admitted]) -> dict[str, Any]:
        """Which vision tokens each cut kept, and where the images' tokens are."""
        cuts = await take_trace(self._client, trace)
        reduced = any(item.plan is not None for item in admitted)
        return {
            "images": [
                {"grid": image.grid, "first": image.first, "tokens": image.tokens}
                for item in admitted
                for image in item.images
            ],
            "cuts": [{"layer": layer, "kept": kept} for layer, kept in cuts or ()],
            "truncated": reduced and cuts is None,
        }


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
    except (EngineDeadError, EngineGenerateError) as err:
        raise _cause(err) from err
    except _STUMBLES as err:
        if has_admitted():
            raise
        logger.warning("no prompt can be made of a request", exc_info=err)
        raise RequestError(
            f"no prompt can be made of this request ({err}); check the types of its fields, and"
            " whether truncate_prompt_tokens or chat_template takes the place of an image away"
        ) from err
    if isinstance(answer, ErrorResponse):
        return Failure(answer.error.code, answer.model_dump())
    if isinstance(answer, BaseModel):
        wanted = raw_request.headers.get(_LOAD_METRICS_HEADER, "")
        return Whole(answer.model_dump(mode="json", by_alias=True), metrics_header(wanted))
    interval = float(getattr(raw_request.app.state.args, "sse_keep_alive_interval", 0))
    return Chunks(await _begun(with_sse_keep_alive(answer, interval)))


async def _as_sse(events: AsyncIterator[Any]) -> AsyncIterator[str]:
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


def _cause(err: Exception) -> Exception:
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
        raise _cause(err) from err
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


@contextmanager
def first_token(call: Callable[[], None]) -> Iterator[None]:
    """Have ``call`` called when what is begun inside the context has its first token."""
    token = _on_first_token.set(call)
    try:
        yield
    finally:
        _on_first_token.reset(token)


def _tap_first_tokens(client: Any) -> None:
    """Let the engine client tell ``first_token``; one that tells already stays as it is."""
    stock = client.generate
    if getattr(stock, "vtr_tapped", False):
        return

    def generate(*args: Any, **kw: Any) -> AsyncIterator[Any]:
        call = _on_first_token.get()
        outputs = stock(*args, **kw)
        return outputs if call is None else _calling(call, outputs)

    generate.vtr_tapped = True  # type: ignore[attr-defined]
    client.generate = generate


async def _calling(call: Callable[[], None], outputs: Any) -> AsyncIterator[Any]:
    first = True
    try:
        async for output in outputs:
            if first:
                call()
                first = False
            yield output
    finally:
        await outputs.aclose()


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
