"""One word for each way to end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException

from vtr_server.operations.outcomes import Outcome, outcome_of, outcome_of_status
from vtr_vllm import errors
from vtr_vllm.errors import VTRError

REFUSED = {
    errors.BudgetNotAllowed,
    errors.Draining,
    errors.Forbidden,
    errors.InvalidKey,
    errors.CallerBusy,
    errors.JobsBusy,
    errors.Overloaded,
    errors.RateLimited,
    errors.RetryLater,
}


def tree(error: type[VTRError] = VTRError) -> Iterator[type[VTRError]]:
    yield error
    for child in error.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("error", sorted(set(tree()), key=lambda each: each.__name__))
def test_refused_is_what_may_pass_later_or_with_another_key(error: type[VTRError]) -> None:
    found = outcome_of(error("no"))
    if error is errors.RequestTimeout:
        assert found == "timeout"
    elif error in REFUSED:
        assert found == "refused"
    else:
        assert found == ("client_error" if error.http_status < 500 else "error")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (asyncio.CancelledError(), "aborted"),
        (GeneratorExit(), "aborted"),
        (HTTPException(404), "client_error"),
        (HTTPException(401), "refused"),
        (HTTPException(500), "error"),
        (RuntimeError("a fault"), "error"),
    ],
)
def test_what_is_no_error_of_ours(error: BaseException, outcome: Outcome) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(101, "ok"), (200, "ok"), (400, "client_error"), (429, "refused"), (503, "error")],
)
def test_what_vllm_answered_itself(status: int, outcome: Outcome) -> None:
    assert outcome_of_status(status) == outcome
