"""Requests grown from valid ones by a few mutations; most must be refused, some may pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.server.bad_input import (
    ALIASES,
    BODIES,
    BUDGETS,
    CHAT,
    COMPLETION,
    FIELDS,
    HEADERS,
    INLINE,
    JSON_TYPE,
    SCHEDULES,
    WAYS,
    chat_body,
)
from tests.server.conftest import NAME
from tests.server.robustness.images import parts

RESPONSES = "/v1/responses"
TOKENS = 4
DEEP = 60

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 5, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "auto", "0.5", "null", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\U0010ffff"),
    *("x" * 5000, "{{ messages }}", "../../etc/passwd", "<image>", "<image>" * 20, "%s%n", "'; --"),
    *(
        [],
        {},
        [None],
        [[]],
        [{}],
        {"": None},
        {"type": "text"},
        {"a": {"b": {"c": []}}},
        ["a"] * 40,
    ),
)
"""Values that any field may get. None asks for much work: how much is asked for is not tested here."""

EXTRAS: tuple[dict[str, Any], ...] = (
    *({"stop": [""]}, {"stop": ["a"] * 50}, {"seed": 2**63}, {"n": 3}, {"n": 0}, {"top_k": -5}),
    *({"logprobs": True, "top_logprobs": 5}, {"logprobs": 3}, {"top_logprobs": 10**6}),
    *({"prompt_logprobs": 2}, {"prompt_logprobs": -1}, {"echo": True}, {"suffix": "a"}),
    *({"logit_bias": {"1": 1e9}}, {"logit_bias": {"-1": 1}}, {"allowed_token_ids": []}),
    *({"allowed_token_ids": [10**9]}, {"bad_words": [""]}, {"min_tokens": 99}, {"min_p": 7}),
    *({"repetition_penalty": 0}, {"presence_penalty": 5}, {"temperature": 1e-9}, {"top_p": 1e-9}),
    {"response_format": {"type": "json_schema"}},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": 5}},
        }
    },
    *({"structured_outputs": {"regex": "("}}, {"structured_outputs": {"regex": 5}}),
    *({"structured_outputs": {"regex": "a", "json": {}}}, {"structured_outputs": {"choice": []}}),
    *({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},),
    *({"tool_choice": "required"}, {"tools": []}, {"functions": []}, {"tool_choice": {"type": 1}}),
    *({"chat_template": "{{"}, {"chat_template": "{{ 1/0 }}"}, {"chat_template_kwargs": {"a": 1}}),
    *({"mm_processor_kwargs": {"size": 5}}, {"mm_processor_kwargs": {"nosuch": 1}}),
    *({"mm_processor_kwargs": {"size": {"shortest_edge": -1}}}, {"media_io_kwargs": {"image": {}}}),
    *({"media_io_kwargs": {"image": {"a": 1}}}, {"media_io_kwargs": {"image": 5}}),
    *({"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 3}),
    *({"kv_transfer_params": {"a": 1}}, {"priority": 5}, {"priority": "high"}, {"cache_salt": ""}),
    *({"request_id": "a/b\n"}, {"request_id": ""}, {"user": "x" * 9999}, {"documents": [{}]}),
    *(
        {"add_generation_prompt": True, "continue_final_message": True},
        {"previous_response_id": "a"},
    ),
    *({"stream_options": {"include_usage": True}}, {"stream_options": {}}, {"stream_options": 5}),
    *({"stream": True, "stream_options": {"continuous_usage_stats": True}}, {"background": True}),
    *(
        {"prompt_embeds": "AAAA"},
        {"prompt_embeds": []},
        {"mm_processor_kwargs": []},
        {"best_of": 2},
    ),
    *({"use_beam_search": True, "n": 2}, {"return_token_ids": True}, {"detokenize": False}),
    *({"thinking_token_budget": -1}, {"reasoning_effort": "none"}, {"include_reasoning": False}),
    *(
        {"vllm_xargs": {"vtr_budget": 1}},
        {"vllm_xargs": {"a": [1, "b"]}},
        {"skip_special_tokens": 0},
    ),
    *({"repetition_detection": {"a": 1}}, {"ignore_eos": True}, {"stop_token_ids": [-1, 10**12]}),
)
"""Fields that are seldom sent, with good and bad values.

None asks for JSON: the demo model has no word for a brace, and vLLM answers 500 to a grammar that a
vocabulary cannot write.
"""

VALID: tuple[Any, ...] = (
    *({"budget": 1.0}, {"budget": 0.5}, {"budget": 0.3}, {"tier": "economy"}, {"tier": "full"}),
    *({"schedule": "stored-half"}, {"schedule": "fastv-0.5"}, {"max_flops_fraction": 0.9}),
    *({"budget": "auto", "minimum": 0.25}, {"budget": 0.25, "trace": True}),
    {"keep": [1.0] * 6 + [0.5] * 6, "rules": ["last"]},
    *({"budget": 0.5, "reuse": True}, {"reuse": True}, {"tier": "economy", "reuse": False}),
)
ODD_HEADERS: tuple[dict[str, str], ...] = (
    *({"x-vtr-reuse": "true"}, {"x-vtr-reuse": "yes"}, {"x-vtr-budget": "0.5+reuse"}),
    *({"x-vtr-budget": "0.5"}, {"x-vtr-budget": "economy"}, {"x-vtr-budget": "auto"}),
    *({"x-request-id": "a" * 5000}, {"x-request-id": ""}, {"authorization": "Bearer \xff"}),
    *({"authorization": "x"}, {"content-type": "text/plain"}, {"content-type": ""}),
    *({"content-type": "application/json; charset=utf-16"}, {"content-encoding": "gzip"}),
    *({"endpoint-load-metrics-format": "json"}, {"endpoint-load-metrics-format": "nosuch"}),
    *({"x-data-parallel-rank": "7"}, {"x-data-parallel-rank": "a"}),
    *({"traceparent": "00-0-0-0"}, {"accept": "text/event-stream"}, {"expect": "nothing"}),
    *({"x-forwarded-for": "127.0.0.1"}, {"origin": "null"}, {"range": "bytes=0-1"}),
)


@dataclass(frozen=True)
class Sent:
    """One request, ready to go."""

    path: str
    content: bytes
    headers: tuple[tuple[str, str], ...]


def _valid(path: str, part: Any) -> dict[str, Any]:
    """A request that would pass, were its image one."""
    body: dict[str, Any]
    if path == COMPLETION:
        return {"model": NAME, "prompt": "what color", "max_tokens": TOKENS, "temperature": 0}
    body = chat_body(NAME)
    if part is not None:
        body["messages"][0]["content"][0] = part
    if path == CHAT:
        return body
    text = {"type": "input_text", "text": "what color is the square?"}
    message = {"role": "user", "content": [text] if part is None else [part, text]}
    return {"model": NAME, "input": [message], "max_output_tokens": TOKENS, "temperature": 0}


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside of a body."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _mutate(draw: st.DrawFn, body: dict[str, Any]) -> None:
    places = list(_places(body))
    if not places:
        return
    holder, key = places[draw(st.integers(0, len(places) - 1))]
    kind = draw(
        st.sampled_from(("replace", "replace", "remove", "wrap", "deepen", "name", "double"))
    )
    if kind == "replace":
        holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    elif kind == "remove":
        del holder[key]
    elif kind == "wrap":
        holder[key] = draw(st.sampled_from(([holder[key]], {"a": holder[key]}, [holder[key]] * 3)))
    elif kind == "deepen":
        value = holder[key]
        for _ in range(DEEP):
            value = [value] if kind == "deepen" and len(str(key)) % 2 else {"a": value}
        holder[key] = value
    elif kind == "name" and isinstance(holder, dict):
        holder[draw(st.sampled_from(("", "vtr", "n", "\ud800", "__proto__", "type")))] = holder.pop(
            key
        )
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))


def bounded(body: dict[str, Any], path: str) -> None:
    """Keep what passes small: thousands of tokens or of answers are slow, and no error."""
    for key in ("max_tokens", "max_output_tokens", "max_completion_tokens", "n", "best_of"):
        value = body.get(key)
        if isinstance(value, int | float) and 16 < value < 10**9:
            body[key] = 10**9
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    if body.get(limit) is None:
        body[limit] = TOKENS


def _damage(draw: st.DrawFn, content: bytes) -> bytes:
    """What no mutation of a parsed body comes to."""
    at = draw(st.integers(0, len(content)))
    rubbish = draw(
        st.sampled_from((b"\x00", b"\xff", b",", b"]", b'"', b"{", b"\xef\xbb\xbf", b"//"))
    )
    return draw(
        st.sampled_from(
            (
                content[:at],
                content[:at] + rubbish + content[at:],
                rubbish + content,
                content + rubbish,
                content.decode().encode("utf-16"),
                content[:-1] + b', "model": "x"}',
                *BODIES,
            )
        )
    )


_ASPECTS = ("image", "image", "ask", "field", "mutation", "text", "header", "alias", "several")
"""What is odd about a request: one thing, so that it gets as far as that, or several."""

_ODD_ASKS = st.sampled_from((*FIELDS, *INLINE, *WAYS)) | st.builds(
    lambda key, value: {key: value},
    st.sampled_from(
        ("budget", "schedule", "tier", "max_flops_fraction", "trace", "minimum", "reuse")
    ),
    st.sampled_from((*BUDGETS, *SCHEDULES)),
)


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """One request to one of the three routes."""
    path = draw(st.sampled_from((CHAT, CHAT, COMPLETION, RESPONSES)))
    aspect = draw(st.sampled_from(_ASPECTS))
    odd = {aspect} if aspect != "several" else draw(st.sets(st.sampled_from(_ASPECTS), min_size=2))
    place = "input_image" if path == RESPONSES else "image_url"
    body = _valid(path, draw(parts(place)) if "image" in odd and path != COMPLETION else None)
    if draw(st.booleans()):
        body["stream"] = True
    ask = draw(_ODD_ASKS if "ask" in odd else st.none() | st.sampled_from(VALID))
    if ask is not None:
        body["vtr"] = copy.deepcopy(ask)
    if "alias" in odd:
        body["model"] = f"{NAME}@{draw(st.sampled_from((*ALIASES, '0.5', 'economy', 'auto')))}"
    if "field" in odd:
        for extra in draw(st.lists(st.sampled_from(EXTRAS), min_size=1, max_size=2)):
            body.update(copy.deepcopy(extra))
    if "mutation" in odd:
        for _ in range(draw(st.integers(1, 3))):
            _mutate(draw, body)
    bounded(body, path)
    content = json.dumps(body).encode()
    if "text" in odd:
        content = _damage(draw, content)
    headers = dict(JSON_TYPE)
    if "header" in odd:
        given = {"x-vtr-budget": draw(st.sampled_from(HEADERS)).encode().decode("latin-1")}
        headers |= draw(st.sampled_from((*ODD_HEADERS, given)))
    return Sent(path, content, tuple(headers.items()))
