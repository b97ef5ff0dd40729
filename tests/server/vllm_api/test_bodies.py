"""vLLM's request bodies with our field: whatever comes in, the body is at fault."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

pytest.importorskip("vllm")

from vtr_server.vllm_api.bodies import ChatRequest, CompletionRequest, ResponsesRequest

CHAT = {"messages": [{"role": "user", "content": "what"}]}


def test_the_field_stays_as_it_came() -> None:
    for value in ({"budget": 0.5}, "text", None, [1]):
        assert ChatRequest(**CHAT, vtr=value).vtr == value
        assert CompletionRequest(prompt="what", vtr=value).vtr == value
        assert ResponsesRequest(input="what", vtr=value).vtr == value


def test_the_field_is_none_of_those_that_vllm_does_not_know() -> None:
    for kind, body in (
        (ChatRequest, CHAT),
        (CompletionRequest, {"prompt": "what"}),
        (ResponsesRequest, {"input": "what"}),
    ):
        kind.model_validate(body)
        assert "vtr" in (kind.field_names or ())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": "what", "structured_outputs": [None]}),
        (ChatRequest, {**CHAT, "structured_outputs": ["a"]}),
        (ChatRequest, {**CHAT, "messages": [{"role": "user", "content": 5}]}),
        (ChatRequest, {"messages": None}),
        (ResponsesRequest, {"input": [{"type": "function_call", "id": []}]}),
        (ResponsesRequest, {"input": [5]}),
    ],
)
def test_a_type_that_vllm_does_not_expect_is_an_error_of_the_body(
    kind: type[BaseModel], body: Any
) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(body)
