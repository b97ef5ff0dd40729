"""Every route by what it does: which scope it asks for, and how the policy on budgets holds there.

What is not named here asks for ``admin``, so nothing opens itself; and what leads to the engine without
a decision on its budget is refused at admission wherever there is something to decide, so that no new
route of vLLM's goes round the policy (``vtr_vllm.engine.frontend.admission.decisions_only``).
"""

from collections.abc import Mapping
from typing import Any, Literal

from vtr_server.policy.settings import Scope

__all__ = ["BUDGETED", "is_for_admin_port", "needed_scope", "route_path"]

BUDGETED = frozenset(
    {
        "/invocations",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
    }
)
"""Routes of ours that generate: a budget works there, bounds and allowances hold, and each request is
counted by how it ended."""

TEXT_ONLY = frozenset(
    {
        "/classify",
        "/cohere/v2/chat",
        "/generative_scoring",
        "/inference/v1/generate",
        "/pooling",
        "/rerank",
        "/score",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/embeddings",
        "/v1/realtime",
        "/v1/rerank",
        "/v1/score",
        "/v1/systemone",
        "/v2/embed",
        "/v2/rerank",
    }
)
"""Routes of vLLM's that lead to the engine and know no budget: vision tokens, and keys that steer the
reduction, are refused there at admission. Text has nothing to reduce and passes."""

READING = frozenset(
    {
        "/cohere/v2/chat/render",
        "/detokenize",
        "/load",
        "/tokenize",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/messages/count_tokens",
        "/v1/messages/render",
        "/v1/models",
        "/v1/models/{model_id:path}",
        "/v1/responses/render",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/schedules",
    }
)
"""Nothing is generated: prompts are made and read, stored answers given back."""

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

GENERATE = BUDGETED | TEXT_ONLY | READING
GENERATE_FOLDERS = ("/v1/", "/v2/", "/cohere/")

OPERATOR = frozenset(
    {
        "/abort_requests",
        "/adapters",
        "/adapters/{adapter_name}",
        "/admin/drain",
        "/admin/schedules/reload",
        "/admin/settings",
        "/admin/settings/reload",
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/finish_weight_update",
        "/get_world_size",
        "/inference/v1/abort_requests",
        "/init_weight_transfer_engine",
        "/is_paused",
        "/is_scaling_elastic_ep",
        "/is_sleeping",
        "/kv_event_sources",
        "/pause",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/server_info",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/tokenizer_info",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
        "/weight_info",
    }
)
"""They change the server for everybody, or say what is nobody else's business. The list decides only for
paths in GENERATE_FOLDERS: all others need ``admin`` anyway."""

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


def route_path(scope: Mapping[str, Any]) -> str:
    """The path as the router sees it: without the prefix of ``--root-path``."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path
