"""From our errors to HTTP: the status is the class's own, the body is in OpenAI's form."""

from typing import Any

from fastapi.responses import JSONResponse

from vtr_vllm.errors import EngineNotReady, InvalidKey, RetryLater, VTRError

__all__ = ["engine_died", "error_body", "error_response", "http_error_body"]

_PARAM = {
    "invalid_budget": "vtr.budget",
    "unknown_schedule": "vtr.schedule",
    "unknown_tier": "vtr.tier",
    "invalid_media": "messages",
}
"""The request field that a code is about; the others are about the request as a whole."""


def error_body(err: VTRError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    return _body(str(err), err.http_status, _PARAM.get(err.code), err.code)


def error_response(err: VTRError) -> JSONResponse:
    """The error under its own status, with the headers that go with it."""
    headers = {}
    if isinstance(err, RetryLater):
        headers["Retry-After"] = str(err.retry_after)
    if isinstance(err, InvalidKey):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(err), status_code=err.http_status, headers=headers)


def engine_died() -> EngineNotReady:
    """The answer to every request once the engine's process is dead, for which vLLM has a 500."""
    return EngineNotReady(
        "the engine has died, and the server ends with it; send the request again when a supervisor"
        " has started the server anew"
    )


def http_error_body(status: int, message: str) -> dict[str, Any]:
    """The same for an error that is no class of ours; its code is the status, as in vLLM."""
    return _body(message, status, None, status)


def _body(message: str, status: int, param: str | None, code: str | int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
