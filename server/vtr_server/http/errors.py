"""From our errors to HTTP: the status is the class's own, the body in the form of the route's API."""

from typing import Any

from fastapi.responses import JSONResponse

from vtr_vllm.errors import EngineDead, InvalidKey, RetryLater, VTRError

__all__ = [
    "engine_died",
    "error_body",
    "error_response",
    "http_error_body",
    "in_form_of",
    "is_openais",
]

_PARAM = {
    "invalid_budget": "vtr.budget",
    "unknown_schedule": "vtr.schedule",
    "unknown_tier": "vtr.tier",
    "invalid_media": "messages",
    "model_not_found": "model",
}
"""The request field that a code is about; the others are about the request as a whole."""


_ANTHROPICS = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Their SDKs tell errors apart by these; the others are ``invalid_request_error`` and ``api_error``."""


def is_openais(path: str) -> bool:
    """Whether the API at ``path`` is OpenAI's, and not Anthropic's."""
    return not path.startswith(_ANTHROPICS)


def in_form_of(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """An error in OpenAI's form as the API of a route has it: Anthropic's adds a frame, and has its types."""
    if is_openais(path):
        return body
    kind = "invalid_request_error" if status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(status, kind)
    return {"type": "error", "error": {**body["error"], "type": kind}}


def error_body(err: VTRError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    return _body(str(err), err.http_status, _PARAM.get(err.code), err.code)


def error_response(err: VTRError, path: str = "") -> JSONResponse:
    """The error of the route at ``path``, under its own status, with the headers that go with it."""
    headers = {}
    if isinstance(err, RetryLater):
        headers["Retry-After"] = str(err.retry_after)
    if isinstance(err, InvalidKey):
        headers["WWW-Authenticate"] = "Bearer"
    body = in_form_of(path, err.http_status, error_body(err))
    return JSONResponse(body, status_code=err.http_status, headers=headers)


def engine_died() -> EngineDead:
    """The answer to every request once the engine's process is dead, for which vLLM has a 500."""
    return EngineDead(
        "the engine has died, and the server ends with it; send the request again when a supervisor"
        " has started the server anew"
    )


def http_error_body(status: int, message: str) -> dict[str, Any]:
    """The same for an error that is no class of ours; its code is the status, as in vLLM."""
    return _body(message, status, None, status)


def _body(message: str, status: int, param: str | None, code: str | int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
