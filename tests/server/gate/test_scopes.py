"""Which path needs which scope, for every route that vLLM and we have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_server.gate.scopes import (
    BUDGETED,
    OPEN,
    OPERATOR,
    READING,
    TEXT_ONLY,
    is_for_admin_port,
    needed_scope,
)

KINDS = (BUDGETED, TEXT_ONLY, READING, OPERATOR, OPEN)

TASKS = (
    "generate",
    "transcription",
    "realtime",
    "embed",
    "classify",
    "score",
    "token_embed",
    "token_classify",
    "plugin",
    "render",
)
FLAGS = [
    "--enable-scale-out",
    "--enable-lora",
    "--enable-fault-tolerance",
    "--tokens-only",
    "--enable-tokenizer-info-endpoint",
    "--enable-offline-docs",
]
ENVIRONMENT = {
    "VLLM_PLUGINS": "vtr",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ENABLE_COHERE_API": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
"""With the flags, everything that adds a route."""


@pytest.fixture(scope="module")
def running() -> dict[str, str]:
    """Path of each route of the running application -> the module that answers there.

    vLLM's own application with our plugin; no engine.
    """
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        parser = make_arg_parser(FlexibleArgumentParser())
        app = build_app(parser.parse_args(["--model", "m", *FLAGS]), TASKS)
    endpoints = {route.path: getattr(route, "endpoint", None) for route in app.routes}
    inner = {path: getattr(end, "__wrapped__", end) for path, end in endpoints.items()}
    return {path: getattr(end, "__module__", "-") for path, end in inner.items()}


def test_no_route_of_the_running_application_is_unknown(running: dict[str, str]) -> None:
    """Whoever adds one must say whether it generates, and how the policy holds there."""
    assert len(running) > 60
    known = frozenset().union(*KINDS)
    open_folders = ("/page/", "/static", "/metrics")
    unknown = {p for p in running if p not in known and not p.startswith(open_folders)}
    assert unknown == set(), "name each in vtr_server.gate.scopes, by what it does"


def test_every_route_that_takes_a_budget_is_ours(running: dict[str, str]) -> None:
    for path in BUDGETED - {"/invocations"}:
        assert running[path] == "vtr_server.http.routes", path
    assert running["/invocations"] == "vtr_server.vllm_api.sagemaker"


def test_each_path_is_of_one_kind() -> None:
    assert sum(map(len, KINDS)) == len(frozenset().union(*KINDS))


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
