"""One body for every error, and a status for each of ours."""

from __future__ import annotations

import pytest

from vtr_server.http.errors import error_body, http_error_body
from vtr_vllm import errors
from vtr_vllm.errors import VTRError

CLASSES = [each for name in errors.__all__ if isinstance(each := getattr(errors, name), type)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_has_openai_form(kind: type[VTRError]) -> None:
    error = error_body(kind("value 5; allowed is 1..4: send 4"))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "value 5; allowed is 1..4: send 4"
    assert error["code"] == kind.code
    assert error["type"] == ("invalid_request_error" if kind.http_status < 500 else "server_error")


@pytest.mark.parametrize(
    ("kind", "param"),
    [
        (errors.InvalidBudget, "vtr.budget"),
        (errors.UnknownSchedule, "vtr.schedule"),
        (errors.InvalidMedia, "messages"),
        (errors.PromptTooLong, None),
    ],
)
def test_the_field_at_fault_is_named(kind: type[VTRError], param: str | None) -> None:
    assert error_body(kind("no"))["error"]["param"] == param


def test_an_error_that_is_not_ours_carries_its_status_as_code() -> None:
    assert http_error_body(404, "Not Found")["error"] == {
        "message": "Not Found",
        "type": "invalid_request_error",
        "param": None,
        "code": 404,
    }
