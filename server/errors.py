"""From our errors to HTTP: the status is the class's own, the body is in OpenAI's form."""

from typing import Any

from vtr_vllm.errors import VTRError

__all__ = ["error_body", "http_error_body"]

_PARAM = {
    "invalid_budget": "vtr.budget",
    "unknown_schedule": "vtr.schedule",
    "invalid_media": "messages",
}
"""The request field that a code is about; the others are about the request as a whole."""


def error_body(err: VTRError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    return _body(str(err), err.http_status, _PARAM.get(err.code), err.code)


def http_error_body(status: int, message: str) -> dict[str, Any]:
    """The same for an error that is no class of ours; its code is the status, as in vLLM."""
    return _body(message, status, None, status)


def _body(message: str, status: int, param: str | None, code: str | int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
