"""SageMaker's route, as vLLM mounts it: behind sessions, before which a body is checked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request

pytest.importorskip("vllm")

import model_hosting_container_standards.sagemaker as sagemaker

from vtr_server.http import routes
from vtr_server.vllm_api.sagemaker import own_invocations
from vtr_vllm.errors import RequestError


def test_a_body_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted: list[Any] = []
    checked: list[Request] = []

    async def check(raw_request: Request) -> None:
        checked.append(raw_request)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"model": "demo"}'}

    monkeypatch.setattr(sagemaker, "custom_invocation_handler", mounted.append)
    monkeypatch.setattr(routes, "validate_json_request", check)
    own_invocations(routes.invocations, routes.check_json_object)
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(RequestError, match="send messages"):
        asyncio.run(mounted[0](request))
    assert len(checked) == 1
