"""Every error leaves in OpenAI's form, whichever application it is raised in."""

from __future__ import annotations

import logging

import pytest
from fastapi import APIRouter, FastAPI
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

    app.include_router(router)
    install_error_handlers(app)

    @app.exception_handler(RequestValidationError)  # as vLLM puts its own in this place, later
    async def theirs(*_: object) -> JSONResponse:
        return JSONResponse("not our form", 400)

    return TestClient(app)


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"number": "x"}', "{}", ""])
def test_a_faulty_body_is_refused_in_our_words(content: str) -> None:
    answer = client().post("/checked", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert error["message"].startswith("body")


def test_a_good_body_passes() -> None:
    assert client().post("/checked", json={"number": 5}).json() == {"number": 5}


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
