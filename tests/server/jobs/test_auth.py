"""The bearer token."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.server.jobs.conftest import Place
from vtr_server.jobs.app import create_app

TOKEN = "sésame-1"


@pytest.fixture
def client(place: Place) -> TestClient:
    return TestClient(create_app(place.settings(token=TOKEN)))


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer sésame"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/openapi.json", "/nosuch", "//health"])
def test_nothing_without_the_token(client: TestClient, given: str | None, path: str) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    with client:
        answer = client.get(path, headers=headers)
        refused = client.post(path, content="{", headers=headers)
    assert answer.status_code == refused.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text
    assert answer.json()["error"]["code"] == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_everything_with_it(client: TestClient, scheme: str) -> None:
    with client:
        headers = {"Authorization": f"{scheme} {TOKEN}".encode()}
        assert client.get("/v1/jobs", headers=headers).status_code == 200


def test_health_needs_none(client: TestClient) -> None:
    with client:
        assert client.get("/health").status_code == 200
