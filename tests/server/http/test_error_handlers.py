"""Every error leaves in OpenAI's form, whichever application it is raised in."""

from __future__ import annotations

import logging

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi import HTTPException as FastAPIsHTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from vtr_server.http.error_handlers import CheckedRoute, install_error_handlers
from vtr_vllm.errors import RateLimited, UnknownTier, VTRError


class Body(BaseModel):
    number: int


def client() -> TestClient:
    app, router = FastAPI(), APIRouter(route_class=CheckedRoute)

    @router.post("/checked")
    async def checked(body: Body) -> Body:
        return body

    @router.get("/ours")
    async def ours() -> None:
        raise UnknownTier("no such tier")

    @router.get("/broken")
    async def broken() -> None:
        raise VTRError("something that must hold does not")

    @router.get("/later")
    async def later() -> None:
        raise RateLimited("too much", retry_after=7)

    @router.get("/starlettes")
    async def starlettes() -> None:
        raise HTTPException(418, "a teapot", {"X-Short": "stout"})

    def as_vllm_does() -> None:
        raise RequestValidationError(errors=["Unsupported Media Type"])

    @router.post("/no_json", dependencies=[Depends(as_vllm_does)])
    @router.post("/v1/messages/no_json", dependencies=[Depends(as_vllm_does)])
    async def no_json() -> None:
        raise AssertionError

    @router.post("/failing")
    @router.post("/v1/messages")
    async def failing(kind: str) -> None:
        raise FAILURES[kind]

    app.include_router(router)
    install_error_handlers(app)

    # as vLLM puts its own in these places, later
    @app.exception_handler(RequestValidationError)
    async def theirs(*_: object) -> JSONResponse:
        return JSONResponse("not our form", 400)

    @app.exception_handler(ValueError)
    @app.exception_handler(NotImplementedError)
    @app.exception_handler(FastAPIsHTTPException)
    async def openais(_: object, err: Exception) -> JSONResponse:
        status = 501 if isinstance(err, NotImplementedError) else 400
        error = {"message": str(err), "type": "theirs", "param": None, "code": status}
        return JSONResponse({"error": error}, status)

    return TestClient(app)


FAILURES: dict[str, Exception] = {
    "value": ValueError("a value"),
    "no such": NotImplementedError("no such API"),
    "http": FastAPIsHTTPException(400, "no body"),
    "ours": RateLimited("too much", retry_after=7),
}


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"number": "x"}', "{}", ""])
def test_a_faulty_body_is_refused_in_our_words(content: str) -> None:
    answer = client().post("/checked", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert error["message"].startswith("body")


def test_a_good_body_passes() -> None:
    assert client().post("/checked", json={"number": 5}).json() == {"number": 5}


@pytest.mark.parametrize("path", ["/no_json", "/v1/messages/no_json"])
def test_a_fault_that_is_a_text_is_told(path: str) -> None:
    answer = client().post(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert error["message"] == "Unsupported Media Type"
    assert (answer.json().get("type") == "error") == path.startswith("/v1")


@pytest.mark.parametrize(
    ("kind", "status", "name"),
    [
        ("value", 400, "invalid_request_error"),
        ("no such", 501, "api_error"),
        ("http", 400, "invalid_request_error"),
        ("ours", 429, "rate_limit_error"),
    ],
)
def test_what_others_answer_has_the_form_of_the_path(kind: str, status: int, name: str) -> None:
    answer = client().post("/v1/messages", params={"kind": kind})
    assert answer.status_code == status
    assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", name)
    openais = client().post("/failing", params={"kind": kind})
    assert openais.status_code == status
    assert list(openais.json()) == ["error"]
    assert openais.headers.get("retry-after") == answer.headers.get("retry-after")


@pytest.mark.parametrize(
    ("path", "status", "code", "header"),
    [
        ("/ours", 400, "unknown_tier", None),
        ("/later", 429, "rate_limited", ("retry-after", "7")),
        ("/starlettes", 418, 418, ("x-short", "stout")),
        ("/nosuch", 404, 404, None),
        ("/checked", 405, 405, ("allow", "POST")),
    ],
)
def test_statuses_codes_and_headers(
    path: str, status: int, code: object, header: tuple[str, str] | None
) -> None:
    answer = client().get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if header is not None:
        assert answer.headers[header[0]] == header[1]


def test_only_a_broken_invariant_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 500 and no more: what led to it must be found by the operator."""
    logger = logging.getLogger("vllm.vtr")
    logger.addHandler(caplog.handler)  # vLLM's loggers hand nothing on
    try:
        assert client().get("/ours").status_code == 400
        assert not caplog.records
        assert client().get("/broken").status_code == 500
    finally:
        logger.removeHandler(caplog.handler)
    assert "something that must hold does not" in caplog.text
