"""Which path needs which scope, for every route that vLLM and we have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_server.gate.scopes import OPEN, is_for_admin_port, needed_scope


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/", "open"),
        ("/page/app.js", "open"),
        ("/health", "open"),
        ("/v1/chat/completions", "generate"),
        ("/v1/responses/resp_1/cancel", "generate"),
        ("/v1/models", "generate"),
        ("/v2/rerank", "generate"),
        ("/cohere/v2/chat", "generate"),
        ("/inference/v1/generate", "generate"),
        ("/tokenize", "generate"),
        ("/pooling", "generate"),
        ("/metrics", "metrics"),
        ("/metrics/", "metrics"),
        ("/metricsx", "metrics"),
        ("/v1/jobs", "jobs"),
        ("/v1/jobs/1/events", "jobs"),
        ("/v1/jobsx", "generate"),
        ("/admin/drain", "admin"),
        ("/v1/load_lora_adapter", "admin"),
        ("/inference/v1/abort_requests", "admin"),
        ("/collective_rpc", "admin"),
        ("/server_info", "admin"),
        ("/sleep", "admin"),
        ("/health/", "admin"),
        ("//health", "admin"),
        ("/page", "admin"),
        ("", "admin"),
    ],
)
def test_scopes(path: str, scope: str) -> None:
    assert needed_scope(path) == scope


@given(st.text(max_size=40))
def test_only_what_is_listed_is_open(path: str) -> None:
    listed = path in OPEN or path.startswith(("/page/", "/static/"))
    assert (needed_scope(path) == "open") == listed


@pytest.mark.parametrize(
    "path", ["/metrics", "/metricsx", "/health", "/ready", "/live", "/admin/x"]
)
def test_what_moves_to_the_admin_port(path: str) -> None:
    assert is_for_admin_port(path)
    assert not is_for_admin_port(f"/v1{path}")


def test_nothing_of_the_clients_moves() -> None:
    assert not [
        p for p in ("/", "/v1/models", "/ping", "/version", "/page/x") if is_for_admin_port(p)
    ]
