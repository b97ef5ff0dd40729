"""vLLM's request bodies with our field: whatever comes in, the body is at fault."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

pytest.importorskip("vllm")

from vtr_server.http.endpoints import BATCH, CHAT
from vtr_server.vllm_api.bodies import (
    BatchRequest,
    ChatRequest,
    CompletionRequest,
    MessagesRequest,
    ResponsesRequest,
)

CHAT_BODY = {"messages": [{"role": "user", "content": "what"}]}


def test_the_field_stays_as_it_came() -> None:
    for value in ({"budget": 0.5}, "text", None, [1]):
        assert ChatRequest(**CHAT_BODY, vtr=value).vtr == value
        assert CompletionRequest(prompt="what", vtr=value).vtr == value
        assert ResponsesRequest(input="what", vtr=value).vtr == value


def test_the_field_is_none_of_those_that_vllm_does_not_know() -> None:
    for kind, body in (
        (ChatRequest, CHAT_BODY),
        (CompletionRequest, {"prompt": "what"}),
        (ResponsesRequest, {"input": "what"}),
    ):
        kind.model_validate(body)
        assert "vtr" in (kind.field_names or ())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": "what", "structured_outputs": [None]}),
        (ChatRequest, {**CHAT_BODY, "structured_outputs": ["a"]}),
        (ChatRequest, {**CHAT_BODY, "messages": [{"role": "user", "content": 5}]}),
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


IMAGE = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}


@pytest.mark.parametrize(
    "content",
    [["what", "is it?"], ["what", IMAGE], [IMAGE, "what"], ["what", {"type": "text", "text": "x"}]],
)
def test_plain_texts_among_the_parts_are_parts(content: list[Any]) -> None:
    """Of one conversation and of several; each part can be read, whatever type vLLM gives it."""
    messages = [{"role": "user", "content": content}]
    chat = ChatRequest.model_validate({"messages": messages})
    batch = BatchRequest.model_validate({"messages": [messages, messages]})
    for found in (chat.messages, *batch.messages):
        parts = list(found[0]["content"])
        assert [part["type"] for part in parts] == [
            "text" if isinstance(part, str) else part["type"] for part in content
        ]
    assert CHAT.details(chat) == (["low"] if IMAGE in content else [])
    assert BATCH.details(batch) == (["low", "low"] if IMAGE in content else [])
    assert messages[0]["content"] == content, "what came is left as it was"


def test_a_body_says_where_it_asks_for_a_budget_that_nobody_reads() -> None:
    for kind, body in (
        (ChatRequest, CHAT_BODY),
        (BatchRequest, {"messages": [CHAT_BODY["messages"]]}),
        (CompletionRequest, {"prompt": "what"}),
        (ResponsesRequest, {"input": "what"}),
        (MessagesRequest, CHAT_BODY | {"model": "m", "max_tokens": 1}),
    ):
        assert kind.model_validate(body).misplaced is None
        asking = kind.model_validate(body | {"vtr": {"budget": 1}, "extra_body": {}})
        assert asking.misplaced == "the body's 'extra_body'"
