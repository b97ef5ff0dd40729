"""How a request ended, in one word for the metrics."""

import asyncio
from typing import Literal

from starlette.exceptions import HTTPException

from vtr_vllm.errors import RequestTimeout, RetryLater, VTRError

__all__ = ["Outcome", "outcome_of", "outcome_of_status"]

Outcome = Literal["ok", "client_error", "refused", "aborted", "error", "timeout"]


def outcome_of(err: BaseException) -> Outcome:
    """Of a request that ended with an error of ours, of Starlette's, or of asyncio's."""
    if isinstance(err, asyncio.CancelledError | GeneratorExit):
        return "aborted"
    if isinstance(err, RequestTimeout):
        return "timeout"
    if isinstance(err, RetryLater):
        return "refused"
    if isinstance(err, HTTPException):
        return outcome_of_status(err.status_code)
    return outcome_of_status(err.http_status if isinstance(err, VTRError) else 500)


def outcome_of_status(status: int) -> Outcome:
    """Of a request that was answered with ``status``."""
    if status in (401, 403, 429):
        return "refused"  # the same request may pass with another key, or later
    if status >= 500:
        return "error"
    return "client_error" if status >= 400 else "ok"
