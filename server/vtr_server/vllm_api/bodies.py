"""Request bodies: vLLM's, with the ``vtr`` field."""

from typing import Any, ClassVar

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest as VLLMCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest as VLLMResponsesRequest

from vtr_server.policy.vtr_field import VTRField

__all__ = ["ChatRequest", "CompletionRequest", "ResponsesRequest"]

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

    @model_validator(mode="wrap")
    @classmethod
    def _blame_the_body(cls, body: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            return check(body)
        except (AttributeError, KeyError, IndexError, TypeError, RecursionError) as err:
            raise ValueError(f"a field has another type than it should: {err}") from err


class ChatRequest(_AnyForm, ChatCompletionRequest):
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
