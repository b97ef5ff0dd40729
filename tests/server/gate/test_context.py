"""One request's context: one object from the gate to the answer, never shared by two requests."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.server.gate.apps import key
from vtr_server.gate.context import Caller, RequestContext
from vtr_server.gate.exchange import Exchange
from vtr_server.policy.settings import LimitSettings
from vtr_vllm.errors import RequestTimeout


def test_a_scope_has_one_context() -> None:
    scope: dict[str, Any] = {}
    context = RequestContext.of(scope)
    context.charged = True
    assert RequestContext.of(scope) is context
    other = RequestContext.of({"state": {"mine": 1}})
    assert (other.charged, other.caller, other.cut_off) == (False, Caller(None, "-"), None)


def test_a_copy_of_a_scope_has_another() -> None:
    scope: dict[str, Any] = {"type": "http", "state": {"mine": 1}}
    marked = RequestContext(on_admin_port=True).put_into(scope)
    assert RequestContext.of(marked).on_admin_port
    assert marked["state"]["mine"] == 1
    assert not RequestContext.of(scope).on_admin_port


def test_a_caller_has_the_name_of_its_key() -> None:
    assert Caller(key("team", "secret"), "key team").name == "team"
    assert Caller(None, "10.0.0.1").name is None


def test_it_says_why_the_gate_cut_a_request_off() -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    async def make() -> Exchange:
        return Exchange({"type": "http"}, nothing, nothing, LimitSettings(), b"id")

    context = RequestContext()
    assert context.cut_off is None
    context.exchange = asyncio.run(make())
    assert context.cut_off is None
    context.exchange.failure = RequestTimeout("too long")
    assert isinstance(context.cut_off, RequestTimeout)
