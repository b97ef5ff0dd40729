"""From our errors to HTTP: the status is the class's own, the body is in OpenAI's form."""

from typing import Any

from vtr_vllm.errors import VTRError

__all__ = ["error_body"]

_PARAM = {
    "invalid_budget": "vtr.budget",
    "unknown_schedule": "vtr.schedule",
    "invalid_media": "messages",
}
"""The request field that a code is about; the others are about the request as a whole."""


def error_body(err: VTRError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    kind = "invalid_request_error" if err.http_status < 500 else "server_error"
    return {
        "error": {
            "message": str(err),
            "type": kind,
            "param": _PARAM.get(err.code),
            "code": err.code,
        }
    }
