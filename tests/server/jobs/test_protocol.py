"""What a client may not send: refused with 400 and a message, and nothing is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.jobs.conftest import Place, error


@pytest.mark.parametrize(
    "query", ["state=asleep", "limit=0", "limit=201", "after=../x", "sate=done"]
)
def test_a_malformed_query_is_refused(client: TestClient, query: str) -> None:
    assert query.split("=")[0] in error(client.get(f"/v1/jobs?{query}"), 400, "invalid_request")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "rm"}, "kind"),
        ({"budgets": []}, "budgets"),
        ({"budgets": [0.5, 1.0]}, "budgets.1"),
        ({"budgets": [0.5, 0.5]}, "different"),
        ({"budgets": "0.5"}, "budgets"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"tolerance": 100}, "tolerance"),
        ({"trials": 0}, "trials"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"engines": 65}, "engines"),
        ({"engine_args": {"worker_cls": "a.B"}}, "worker_cls"),
        ({"max_minutes": 0}, "max_minutes"),
        ({"servers": ["http://one:8000"], "engines": 2}, "leave one out"),
        ({"seed": True}, "seed"),
        ({"items": 0}, "items"),
        ({"tolerance": "NaN"}, "tolerance"),
        ({"objective": "speed"}, "objective"),
        ({"sead": 1}, "sead"),
        ({"data": ""}, "data"),
        ({"data": "items.jsonl\x00"}, "data"),
        ({"data": "\ud800"}, "data"),
        ({"data": "../control.json"}, "data"),
        ({"data": "/etc/passwd"}, "data"),
        ({"data": "x" * 1000}, "data"),
        ({"data": "."}, "data"),
        ({"heldout": "../jobs/lock"}, "heldout"),
        ({"model": "--help"}, "model"),
        ({"model": "someone/else"}, "model"),
        ({"servers": ["http://169.254.169.254"]}, "169.254"),
    ],
)
def test_a_malformed_job_is_refused_and_not_kept(
    client: TestClient, place: Place, changes: dict[str, Any], said: str
) -> None:
    body = json.dumps(place.body(**changes)).encode()
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert said in error(answer, 400, "invalid_request")
    assert client.get("/v1/jobs").json() == {"data": [], "has_more": False, "broken": []}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"kind": NaN}', "[" * 100_000])
def test_a_body_that_is_no_job_is_refused(client: TestClient, text: str) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/v1/jobs", content=text, headers=headers).status_code == 400


def test_null_and_left_out_mean_the_default(client: TestClient, place: Place) -> None:
    """Jobs that an earlier release wrote have nulls, too."""
    wanted = {"kind": "g-search", "model": "demo", "data": "items.jsonl"}
    nulls = dict.fromkeys(("budgets", "tolerance", "objective", "servers", "items", "heldout"))
    specs = [client.post("/v1/jobs", json=body).json()["spec"] for body in (wanted, wanted | nulls)]
    assert specs[0] == specs[1]
    assert specs[0]["budgets"] == [0.75, 0.5, 0.375, 0.25, 0.1875]
    assert (specs[0]["tolerance"], specs[0]["lambda"], specs[0]["items"]) == (0.005, 0.005, None)
