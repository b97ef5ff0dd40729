"""The tree that servers and dashboards rely on."""

import pytest

from vtr_vllm import errors
from vtr_vllm.errors import VTRError, show


def walk(root: type[VTRError]) -> list[type[VTRError]]:
    return [root, *(found for child in root.__subclasses__() for found in walk(child))]


def test_every_class_has_a_status_and_a_code_of_its_own():
    tree = [error for error in walk(VTRError) if error.__module__ == errors.__name__]
    assert {error.__name__ for error in tree} == set(errors.__all__) - {"show"}
    assert all(400 <= error.http_status <= 599 for error in tree)
    assert len({error.code for error in tree}) == len(tree)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("InvalidBudget", 400, "invalid_budget"),
        ("UnknownSchedule", 400, "unknown_schedule"),
        ("UnsupportedRequest", 400, "unsupported_request"),
        ("PromptTooLong", 400, "prompt_too_long"),
        ("ScheduleError", 422, "invalid_schedule"),
        ("GeometryMismatch", 422, "geometry_mismatch"),
        ("CalibrationError", 422, "invalid_calibration"),
        ("ConfigurationError", 500, "configuration"),
        ("UnsupportedModel", 500, "unsupported_model"),
    ],
)
def test_statuses_and_codes_are_stable(name, status, code):
    error = getattr(errors, name)
    assert (error.http_status, error.code) == (status, code)


def test_shown_values_are_short():
    assert show("x" * 10**6).startswith("'xxx")
    assert len(show(["x" * 100] * 100)) < 300


def test_a_client_error_can_be_caught_as_one():
    assert issubclass(errors.PromptTooLong, errors.RequestError)
    assert issubclass(errors.GeometryMismatch, errors.ScheduleError)
    assert not issubclass(errors.ScheduleError, errors.RequestError)
