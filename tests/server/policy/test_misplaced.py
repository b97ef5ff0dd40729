"""Wishes for a budget where nobody reads them."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from vtr_server.policy.misplaced import misplaced_in_body, refuse_misplaced
from vtr_vllm.errors import RequestError

WISH = {"budget": 0.25}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": list(parts)}], **more}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (chat(extra_body={"vtr": WISH}), "'extra_body'"),
        (chat(extra_query={"a": 1}), "'extra_query'"),
        (chat(extra_headers={}), "'extra_headers'"),
        (chat(VTR=WISH), "'VTR'"),
        (chat(Vtr=WISH, vtr=None), "'Vtr'"),
        (chat(vtr_budget=0.25), "'vtr_budget'"),
        (chat(**{"vtr-budget": 0.25}), "'vtr-budget'"),
        (chat(**{"x-vtr-budget": 0.25}), "'x-vtr-budget'"),
        (chat(**{"vtr.budget": 0.25}), "'vtr.budget'"),
        (chat(budget=0.25), "'budget'"),
        (chat(tier="economy"), "'tier'"),
        (chat(schedule="lossless"), "'schedule'"),
        (chat(max_flops_fraction=0.5), "'max_flops_fraction'"),
        (chat(per_image_floor=1), "'per_image_floor'"),
        (chat(keep=[1.0], rules=[]), "'keep'"),
        (chat(metadata={"vtr": WISH}), "metadata.vtr"),
        (chat(metadata={"x-vtr-budget": "0.25"}), "metadata.x-vtr-budget"),
        (chat(vllm_xargs={"vtr": "0.25"}), "vllm_xargs.vtr"),
        (chat(chat_template_kwargs={"vtr": WISH}), "chat_template_kwargs.vtr"),
        (chat(mm_processor_kwargs={"vtr_budget": 1}), "mm_processor_kwargs.vtr_budget"),
        (chat(media_io_kwargs={"VTR": {}}), "media_io_kwargs.VTR"),
        (chat(IMAGE | {"vtr": WISH}), "'vtr' inside of messages.content"),
        (
            chat({"type": "image_url", "image_url": {"url": "data:,", "vtr": WISH}}),
            "'vtr' inside of messages.content.image_url",
        ),
        ({"messages": [{"role": "user", "content": "a", "vtr": WISH}]}, "'vtr' inside of messages"),
        ({"messages": [[{"role": "user", "content": [{"vtr": 1}]}]]}, "'vtr' inside of"),
        ({"input": [{"role": "user", "content": [{"vtr": 1}]}]}, "'vtr' inside of input"),
        (
            {"messages": [{"content": [{"type": "image", "source": {"data": "", "vtr": 1}}]}]},
            "'vtr' inside of messages.content.source",
        ),
    ],
    ids=str,
)
def test_a_wish_in_another_place_is_found(body: dict[str, Any], place: str) -> None:
    found = misplaced_in_body(body)
    assert found is not None
    assert place in found
    with pytest.raises(RequestError, match="where nobody reads it") as caught:
        refuse_misplaced(found, request())
    assert 'send {"vtr": {"budget": 0.25}}' in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        chat(vtr=WISH),
        chat(vtr={"vtr": 1}),  # the check of the field refuses it
        chat("a text", IMAGE, metadata={"budget": "marketing", "tier": "gold"}),
        chat(tools=[{"type": "function", "function": {"parameters": {"properties": {"vtr": {}}}}}]),
        {"messages": [{"content": [{"type": "tool_use", "input": {"vtr": 1, "budget": 2}}]}]},
        chat(user="vtr", service_tier="auto", trace=True, minimum=1, vtrx=1),
        {"prompt": "what is a vtr budget?"},
        {"input": "vtr"},
        {"messages": None, "metadata": "vtr", "vllm_xargs": None},
        [],
        "text",
        None,
    ],
    ids=str,
)
def test_what_asks_for_nothing_or_in_the_right_place_passes(body: object) -> None:
    assert misplaced_in_body(body) is None


def request(headers: tuple[tuple[str, str], ...] = (), query: str = "") -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "headers": raw, "query_string": query.encode()})


@pytest.mark.parametrize(
    ("headers", "query", "place"),
    [
        ((("X-VTR-Tier", "economy"),), "", "the header x-vtr-tier"),
        ((("X-VTR", "0.25"), ("X-VTR-Budget", "0.5")), "", "the header x-vtr"),
        ((("X-VTR-Reused", "true"), ("X-VTR-Reuse", "true")), "", "the header x-vtr-reused"),
        ((), "reuse=true", "the query parameter 'reuse'"),
        ((), "vtr=0.25", "the query parameter 'vtr'"),
        ((), "a=1&budget=0.25", "the query parameter 'budget'"),
        ((), "vtr_budget=1", "the query parameter 'vtr_budget'"),
    ],
)
def test_headers_and_queries(headers: tuple[tuple[str, str], ...], query: str, place: str) -> None:
    with pytest.raises(RequestError, match=f"{place} asks for a budget"):
        refuse_misplaced(None, request(headers, query))


def test_the_header_and_other_parameters_are_fine() -> None:
    headers = (("X-VTR-Budget", "0.25"), ("X-VTR-Reuse", "true"), ("X-Other", "1"))
    refuse_misplaced(None, request(headers, "api-version=2"))


def test_a_deep_body_is_looked_at_to_some_depth_only() -> None:
    node: Any = {"vtr": 1}
    for _ in range(5000):
        node = {"content": [node]}
    assert misplaced_in_body({"messages": [node]}) is None
