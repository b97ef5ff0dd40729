"""In what the endpoints differ that generate: what they call, where images say a detail, how they end."""

from collections.abc import Iterable, Mapping
from typing import Any

from vtr_server.http.answer import Endpoint
from vtr_server.vllm_api.engine import Engine

__all__ = ["BATCH", "CHAT", "COMPLETION", "MESSAGES", "RESPONSE"]

_CHUNK_ENDS = ('"finish_reason":"', '"choices":[]')


def _may_close_chunk(event: str) -> bool:
    return any(text in event for text in _CHUNK_ENDS)  # it is parsed to tell from a client's text


def _closing_chunk(chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A chunk that carries a finish reason, or usage and no choice."""
    choices = chunk.get("choices", [])
    ends = any(c.get("finish_reason") for c in choices) if choices else "usage" in chunk
    return chunk if ends else None


# How an event begins: what a client or a model wrote may have the same text further on.
_MESSAGE_ENDS = ("event: message_start", "event: message_delta")
_EVENT_ENDS = (
    "event: response.completed",
    "event: response.incomplete",
    "event: response.failed",
)


def _closing_event(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The response inside the event that ends a stream of the Responses API."""
    response: Mapping[str, Any] | None = event.get("response")
    return response


def _closing_message(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The event that ends a message, and the message in the one that begins it: SDKs keep only that."""
    message: Mapping[str, Any] | None = event.get("message")
    return event if message is None else message


def _parts(messages: Any) -> Iterable[Mapping[str, Any]]:
    """The parts of all messages, of whatever type a message is."""
    for message in messages if isinstance(messages, list) else ():
        get = (
            message.get
            if isinstance(message, Mapping)
            else lambda name, m=message: getattr(m, name, None)
        )
        content = get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping):
                yield part
            elif hasattr(part, "__dict__"):  # a plain text is a part too, and holds no image
                yield vars(part)


def _details(parts: Iterable[Mapping[str, Any]], place: str) -> list[str]:
    """What the images say of their detail; ``place`` is where a part has it."""
    found = []
    for part in parts:
        value = part.get(place)
        value = value.get("detail") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            found.append(value)
    return found


_VISION = ("image_embeds", "image_pil", "image_url", "input_image", "video_embeds", "video_url")
"""Types of the parts that become vision tokens, and the keys that say so where a part has no type."""


def _has_images(parts: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        part.get("type") == name or ("type" not in part and name in part)
        for part in parts
        for name in _VISION
    )


CHAT = Endpoint(
    serve=Engine.chat,
    details=lambda request: _details(_parts(request.messages), "image_url"),
    has_images=lambda request: _has_images(_parts(request.messages)),
    usage="prompt_tokens_details",
    closes=_closing_chunk,
    may_close=_may_close_chunk,
)
COMPLETION = Endpoint(
    serve=Engine.complete,
    details=lambda _: [],
    usage="prompt_tokens_details",
    closes=_closing_chunk,
    may_close=_may_close_chunk,
)
RESPONSE = Endpoint(
    serve=Engine.respond,
    details=lambda request: _details(_parts(request.input), "detail"),
    usage="input_tokens_details",
    closes=_closing_event,
    may_close=lambda event: event.startswith(_EVENT_ENDS),
)
BATCH = Endpoint(
    serve=Engine.chat_batch,
    details=lambda request: [
        detail
        for messages in request.messages
        for detail in _details(_parts(messages), "image_url")
    ],
    usage="prompt_tokens_details",
    closes=_closing_chunk,
    may_close=lambda _: False,
)
MESSAGES = Endpoint(
    serve=Engine.messages,
    details=lambda _: [],
    usage="input_tokens_details",
    closes=_closing_message,
    may_close=lambda event: event.startswith(_MESSAGE_ENDS),
    early="event: message_start",
)
