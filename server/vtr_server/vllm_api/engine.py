"""vLLM's handlers and its engine client, as the routes see them."""

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import Request
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from vtr_server.vllm_api.answers import (
    Chunks,
    Failure,
    Whole,
    as_sse,
    cause_of,
    serve,
    tap_message_errors,
    tap_stream_errors,
)
from vtr_server.vllm_api.bodies import (
    BatchRequest,
    ChatRequest,
    CompletionRequest,
    CountTokensRequest,
    MessagesRequest,
    ResponsesRequest,
)
from vtr_server.vllm_api.first_token import first_token, tap_first_tokens
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.engine.common.atp import facts_of
from vtr_vllm.engine.common.config import LayerBands, model_geometry
from vtr_vllm.engine.common.kv_report import KVReport
from vtr_vllm.engine.frontend.admission import (
    Admitted,
    collect,
    count_returning,
    decisions_only,
)
from vtr_vllm.engine.frontend.engine_queries import counters, greet, kv_report, take_trace
from vtr_vllm.engine.frontend.first_tokens import collect_first_tokens
from vtr_vllm.engine.frontend.load_logger import LOAD
from vtr_vllm.engine.frontend.returning_images import ReturningImages
from vtr_vllm.engine_settings import EngineSettings
from vtr_vllm.errors import EngineDead, EngineNotReady, RequestError, VTRError
from vtr_vllm.schedules import ModelGeometry

__all__ = [
    "LOAD",
    "Admitted",
    "BatchRequest",
    "ChatRequest",
    "Chunks",
    "CompletionRequest",
    "CountTokensRequest",
    "Engine",
    "EngineDeadError",
    "EngineGenerateError",
    "Failure",
    "KVReport",
    "MessagesRequest",
    "ResponsesRequest",
    "Whole",
    "cause_of",
    "collect",
    "collect_first_tokens",
    "first_token",
    "load_aware_call",
    "validate_json_request",
    "vllm_error_handler",
    "with_cancellation",
]

logger = logging.getLogger("vllm.vtr")


_STREAMING = (
    "openai_serving_chat",
    "openai_serving_completion",
    "anthropic_serving_messages",
    "cohere_serving_chat_v2",
    "serving_tokens",
)
"""Handlers of vLLM's, on the application's state, that turn an error into the last event of a stream."""


class Engine:
    """vLLM's engine client and OpenAI handlers, seen from the routes."""

    def __init__(self, client: Any, state: Any) -> None:
        self._client = client
        self._state = state
        self._in_place = False
        self.silent_seconds: float | None = None
        """How long it has answered nothing, where that is too long: ``poll_engine``."""
        self.geometry: ModelGeometry = model_geometry(client.vllm_config)
        settings = EngineSettings.of(client.vllm_config.additional_config)
        self.schedules: Path | None = settings.schedules
        self.band_starts = LayerBands.of(client.vllm_config).starts
        facts = facts_of(client.vllm_config)  # read here, as the workers read them: at the start
        self.modules: tuple[int, ...] = () if facts is None else facts.layers
        model = client.vllm_config.model_config
        self.checkpoint = checkpoint_digest(model.model, model.revision)
        self.caches_prefixes = bool(client.vllm_config.cache_config.enable_prefix_caching)
        decisions_only(client.input_processor)
        count_returning(client.input_processor, ReturningImages.of(client.vllm_config))
        tap_first_tokens(client)
        for name in _STREAMING:
            if (handler := getattr(state, name, None)) is not None:
                tap_stream_errors(handler)
        if (messages := getattr(state, "anthropic_serving_messages", None)) is not None:
            tap_message_errors(messages)

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

    async def why_unhealthy(self) -> EngineNotReady | None:
        """None if vLLM is alive and reduces; EngineDead, or why it does not, otherwise."""
        if self.silent_seconds is not None:
            return EngineNotReady(
                f"the engine has answered nothing for {self.silent_seconds:g} s: it hangs; look at its"
                " log, and restart it"
            )
        try:
            await self._client.check_health()
            reason = await self.why_not_in_place()
        except EngineDeadError as err:
            return EngineDead(str(err))
        except EngineDead as err:
            return err
        return None if reason is None else EngineNotReady(reason)

    async def why_not_in_place(self) -> str | None:
        """None if every worker has the plugin loaded and its layers in place.

        Yes is remembered, since nothing takes the plugin out again; no is asked anew. Raises
        EngineDead.
        """
        if self._in_place:
            return None
        try:
            workers = await self._client.collective_rpc("vtr_status")
        except EngineDeadError as err:
            raise EngineDead(str(err)) from err
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
        handler = self._handler("openai_serving_chat", "Chat Completions")
        return await serve(handler.create_chat_completion, request, raw_request)

    async def complete(
        self, request: CompletionRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own completion."""
        handler = self._handler("openai_serving_completion", "Completions")
        return await serve(handler.create_completion, request, raw_request)

    async def respond(
        self, request: ResponsesRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own Responses API."""
        handler = self._handler("openai_serving_responses", "Responses")

        async def create(request: Any, raw_request: Any) -> Any:
            answer = await handler.create_responses(request, raw_request)
            return as_sse(answer) if isinstance(answer, AsyncIterator) else answer

        return await serve(create, request, raw_request)

    async def chat_batch(
        self, request: BatchRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own chat completion of several conversations."""
        handler = self._handler("openai_serving_chat_batch", "Chat Completions")
        return await serve(handler.create_batch_chat_completion, request, raw_request)

    async def messages(
        self, request: MessagesRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own Messages API."""
        handler = self._handler("anthropic_serving_messages", "Messages")

        async def create(request: Any, raw_request: Any) -> Any:
            try:
                return await handler.create_messages(request, raw_request)
            except (ValueError, VLLMClientError) as err:  # no chat can be made of these messages
                if isinstance(err, VTRError):
                    raise
                raise RequestError(f"no chat can be made of these messages: {err}") from err

        return await serve(create, request, raw_request, without_none=True)

    async def count_tokens(
        self, request: CountTokensRequest, raw_request: Request
    ) -> Failure | Whole | Chunks:
        """vLLM's own count of the tokens of messages."""
        handler = self._handler("anthropic_serving_messages", "Messages")
        return await serve(handler.count_tokens, request, raw_request, without_none=True)

    def _handler(self, name: str, api: str) -> Any:
        """vLLM's handler of that name; it has none for an API that the model does not support."""
        handler = getattr(self._state, name)
        if handler is None:
            raise NotImplementedError(f"The model does not support {api} API")
        return handler

    async def greet(self) -> None:
        """Tell the engines that this front end holds the settings; raises EngineNotReady."""
        await greet(self._client)

    async def report(self) -> tuple[KVReport, dict[str, float]]:
        """KV blocks, and the workers' counters; raises EngineNotReady."""
        return await kv_report(self._client), await counters(self._client)

    async def trace(self, trace: str, admitted: Sequence[Admitted]) -> dict[str, Any]:
        """Which vision tokens each cut kept, and where the images' tokens are."""
        cuts = await take_trace(self._client, trace)
        reduced = any(item.plan is not None for item in admitted)
        return {
            "images": [
                {
                    "grid": image.grid if image.frames == 1 else None,
                    "first": image.first,
                    "tokens": image.tokens,
                }
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
