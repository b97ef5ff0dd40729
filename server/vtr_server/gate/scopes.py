"""Which scope a path asks for. What is not named here asks for ``admin``, so nothing opens itself."""

from typing import Literal

from vtr_server.policy.settings import Scope

__all__ = ["COUNTED", "is_for_admin_port", "needed_scope"]

OPEN = frozenset(
    {
        "/",
        "/favicon.ico",
        "/health",
        "/live",
        "/ready",
        "/ping",
        "/version",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
    }
)
OPEN_FOLDERS = ("/page/", "/static/")
"""Files of the page, and of vLLM's own copy of the API description's viewer."""

GENERATE = frozenset(
    {
        "/classify",
        "/cohere/v2/chat",
        "/detokenize",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
        "/load",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
    }
)
GENERATE_FOLDERS = ("/v1/", "/v2/", "/cohere/")
COUNTED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Where every request is counted by how it ended."""
OPERATOR = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""They change the server for everybody."""

ADMIN_PATHS = frozenset({"/metrics", "/health", "/live", "/ready", "/admin"})
"""What moves to the admin port when there is one."""


def needed_scope(path: str) -> Scope | Literal["open"]:
    """The scope that a request for ``path`` needs, or ``open``.

    vLLM mounts its metrics at every path that begins with ``/metrics``.
    """
    if path in OPEN or path.startswith(OPEN_FOLDERS):
        return "open"
    if path.startswith("/metrics"):
        return "metrics"
    if path == "/v1/jobs" or path.startswith("/v1/jobs/"):
        return "jobs"
    if path in GENERATE or (path.startswith(GENERATE_FOLDERS) and path not in OPERATOR):
        return "generate"
    return "admin"


def is_for_admin_port(path: str) -> bool:
    """Whether a path is served on the admin port only, when there is one."""
    return path in ADMIN_PATHS or path.startswith(("/metrics", "/admin/"))
