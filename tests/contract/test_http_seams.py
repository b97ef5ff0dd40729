"""What the server's HTTP side relies on in vLLM, in uvicorn, and in what mounts SageMaker's routes."""

from __future__ import annotations

import inspect

import pytest
import uvicorn
import uvicorn.config
from model_hosting_container_standards import sagemaker
from model_hosting_container_standards.common.handler.resolver import GenericHandlerResolver
from model_hosting_container_standards.sagemaker.lora.constants import SageMakerLoRAApiHeader
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.v1.engine.async_llm import AsyncLLM

from vtr_server.vllm_api.sagemaker import ADAPTER


def test_the_header_of_an_adapter_is_that_of_the_library() -> None:
    assert ADAPTER == SageMakerLoRAApiHeader.ADAPTER_IDENTIFIER


@pytest.mark.parametrize(
    ("caller", "names"),
    [
        (AnthropicServingMessages.create_messages, ["create_chat_completion"]),
        (AnthropicServingMessages.create_messages, ["message_stream_converter"]),
        (AnthropicServingMessages.message_stream_converter, ['startswith("data:")']),
        (OpenAIServingChatBatch.create_batch_chat_completion, ["self.engine_client.generate("]),
        (AsyncLLM.__init__, ["self.input_processor ="]),
        (AsyncLLM.add_request, ["self.input_processor.process_inputs("]),
        (build_app, ["attach_endpoint_plugins(", "sagemaker_standards_bootstrap("]),
        (sagemaker.bootstrap, ["register_sagemaker_overrides(", "create_sagemaker_router("]),
        (
            GenericHandlerResolver.resolve_handler,
            ["self._try_decorator_handler", "self._try_customer_script_handler"],
        ),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_it_still_does_what_we_stand_in_for_in_this_order(caller: object, names: list[str]) -> None:
    source = inspect.getsource(caller)  # type: ignore[arg-type]
    places = [source.find(name) for name in names]
    assert -1 not in places
    assert places == sorted(places)


def test_a_servers_protocol_is_the_one_that_uvicorn_calls_auto() -> None:
    """vLLM names none, so that ours stands in for it."""
    assert inspect.signature(uvicorn.Config).parameters["http"].default == "auto"
    assert "http=" not in inspect.getsource(serve_http)
    assert "auto" in uvicorn.config.HTTP_PROTOCOLS
