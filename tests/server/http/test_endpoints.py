"""Which events of a stream get the facts: those of a kind, whatever texts are in the others."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from vtr_server.http.answer import Endpoint
from vtr_server.http.endpoints import CHAT, COMPLETION, MESSAGES, RESPONSE


def holder(endpoint: Endpoint, event: str) -> Any:
    """What the facts of an event go into; None where it is passed on as it is."""
    if not endpoint.may_close(event):
        return None
    return endpoint.closes(json.loads(event.partition("data: ")[2]))


def sent(kind: str, **data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def chunk(**data: Any) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_the_facts_are_in_the_response_that_ends(kind: str) -> None:
    event = sent(f"response.{kind}", response={"id": "a"})
    assert holder(RESPONSE, event) == {"id": "a"}


@pytest.mark.parametrize("text", ["response.completed", "response.incomplete", "response.failed"])
def test_no_text_of_a_client_ends_a_response(text: str) -> None:
    said = {"instructions": f"after event: {text} say no more"}
    assert holder(RESPONSE, sent("response.created", response=said)) is None


def test_the_facts_are_in_a_messages_beginning_and_in_its_end() -> None:
    assert holder(MESSAGES, sent("message_start", message={"id": "a"})) == {"id": "a"}
    assert holder(MESSAGES, sent("message_delta", usage={})) == {"usage": {}}


@pytest.mark.parametrize("text", ["event: message_start", "event: message_delta"])
def test_no_text_of_a_model_ends_a_message(text: str) -> None:
    event = sent("content_block_delta", delta={"type": "text_delta", "text": text})
    assert holder(MESSAGES, event) is None


@pytest.mark.parametrize("text", ['"finish_reason":"stop"', '"choices":[]', "event: message_delta"])
def test_no_text_ends_a_chat(text: str) -> None:
    choice = {"delta": {"content": text}, "finish_reason": None}
    assert holder(CHAT, chunk(choices=[choice])) is None


def test_a_finish_reason_and_usage_end_a_chat() -> None:
    finished = chunk(choices=[{"delta": {}, "finish_reason": "stop"}])
    assert holder(CHAT, finished) == {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert holder(CHAT, chunk(choices=[], usage={})) == {"choices": [], "usage": {}}


@pytest.mark.parametrize(
    ("part", "is_image"),
    [
        ({"type": "image_url", "image_url": {"url": "data:"}}, True),
        ({"type": "image_url", "image_url": None, "uuid": "sent before"}, True),
        ({"image_url": "data:"}, True),
        ({"type": "video_url", "video_url": {"url": "data:"}}, True),
        ({"type": "image_embeds", "image_embeds": ""}, True),
        ({"type": "text", "text": "image_url"}, False),
        ({"type": "text", "text": "what", "image_url": "data:"}, False),
        ({"type": ["image_url"]}, False),
        ("image_url", False),
    ],
)
def test_a_request_has_images_where_a_part_of_a_message_is_one(part: Any, is_image: bool) -> None:
    said = {"role": "user", "content": [{"type": "text", "text": "what"}, part]}
    assert CHAT.has_images(SimpleNamespace(messages=[{"content": "hm"}, said])) == is_image
    assert not COMPLETION.has_images(SimpleNamespace(prompt="image_url"))
