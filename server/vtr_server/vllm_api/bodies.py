"""Request bodies: vLLM's, with the ``vtr`` field."""

from typing import Any, ClassVar

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest as VLLMCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest as VLLMResponsesRequest

from vtr_server.policy.misplaced import misplaced_in_body
from vtr_server.policy.vtr_field import VTRField

__all__ = [
    "BatchRequest",
    "ChatRequest",
    "CompletionRequest",
    "CountTokensRequest",
    "MessagesRequest",
    "ResponsesRequest",
]

_VTR_FIELD = Field(
    default=None,
    description="Vision-token budget; checked by the server, unknown keys are refused.",
    json_schema_extra=VTRField.model_json_schema(),
)


class _AnyForm(BaseModel):
    """Takes what vLLM's checks stumble over for a fault of the body, as it is.

    They look into fields before pydantic has seen their types. vLLM answers 500 to that, and closes
    the connection that other requests may share.
    """

    _misplaced: str | None = PrivateAttr(default=None)

    @property
    def misplaced(self) -> str | None:
        """Where the body asks for a budget and nobody reads it; None where it does not."""
        return self._misplaced

    @model_validator(mode="wrap")
    @classmethod
    def _blame_the_body(cls, body: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            checked = check(cls._prepared(body))
            checked._misplaced = misplaced_in_body(body)
            return checked
        except (AttributeError, KeyError, IndexError, TypeError, RecursionError) as err:
            raise ValueError(f"a field has another type than it should: {err}") from err

    @classmethod
    def _prepared(cls, body: Any) -> Any:
        """The body as vLLM's checks get it."""
        return body


class _Chat(_AnyForm):
    """Takes plain texts among the parts of a message, as LangChain's message type has them.

    vLLM's schema allows them beside an image, and stumbles over a list of nothing else.
    """

    @classmethod
    def _prepared(cls, body: Any) -> Any:
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return body
        return {**body, "messages": [_with_text_parts(message) for message in body["messages"]]}


def _with_text_parts(message: Any) -> Any:
    """A message, or a conversation of them, whose plain texts are parts like others."""
    if isinstance(message, list):
        return [_with_text_parts(each) for each in message]
    if not isinstance(message, dict) or not isinstance(content := message.get("content"), list):
        return message
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return {**message, "content": parts}


class ChatRequest(_Chat, ChatCompletionRequest):
    """vLLM's chat request and the ``vtr`` field, unchecked: ``vtr_server.policy.vtr_field`` checks it."""

    field_names: ClassVar[set[str] | None] = None  # vLLM's cache of names, not the parent's
    vtr: Any = _VTR_FIELD


class CompletionRequest(_AnyForm, VLLMCompletionRequest):
    """vLLM's completion request and the ``vtr`` field."""

    field_names: ClassVar[set[str] | None] = None
    vtr: Any = _VTR_FIELD


class ResponsesRequest(_AnyForm, VLLMResponsesRequest):
    """vLLM's request of the Responses API and the ``vtr`` field."""

    field_names: ClassVar[set[str] | None] = None
    vtr: Any = _VTR_FIELD


class BatchRequest(_Chat, BatchChatCompletionRequest):
    """vLLM's request of several conversations and the ``vtr`` field, which holds for each of them."""

    field_names: ClassVar[set[str] | None] = None
    vtr: Any = _VTR_FIELD


class MessagesRequest(_AnyForm, AnthropicMessagesRequest):
    """vLLM's request of Anthropic's Messages API and the ``vtr`` field."""

    vtr: Any = _VTR_FIELD


class CountTokensRequest(_AnyForm, AnthropicCountTokensRequest):
    """vLLM's request to count the tokens of messages; a budget does not change their number."""

    vtr: Any = _VTR_FIELD
