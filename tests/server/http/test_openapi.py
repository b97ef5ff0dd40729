"""The API reference is generated, and what is in docs/ is the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.source import ROOT
from tests.server.conftest import Server
from vtr_server.http.openapi import PAGE, describe_api, main, render


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return describe_api()


def test_the_page_in_the_docs_is_fresh(tmp_path: Path) -> None:
    written = tmp_path / "api.md"
    assert main([str(written)]) == 0
    assert written.read_text() == (ROOT / PAGE).read_text(), "run make docs"


def test_it_has_every_route(api: dict[str, Any]) -> None:
    page = render(api)
    for path, methods in api["paths"].items():
        for method in methods:
            assert f"\n## {method.upper()} {path}\n" in page


@pytest.mark.engine
def test_a_running_server_describes_itself_alike(server: Server, api: dict[str, Any]) -> None:
    with server.client() as client:
        real = client.get("/openapi.json").json()
    ours = [path for path in api["paths"] if not path.startswith("/v1/jobs")]  # it serves no jobs
    assert _reference(real, ours) == _reference(api, ours)


def _reference(api: dict[str, Any], paths: list[str]) -> str:
    return render({**api, "paths": {path: api["paths"][path] for path in paths}})


def test_a_change_of_the_description_shows(api: dict[str, Any]) -> None:
    fields = {
        "type": "object",
        "required": ["many"],
        "properties": {
            "many": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Part"},
                "maxItems": 3,
            },
            "share": {
                "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]
            },
            "on": {"type": "boolean", "default": False, "description": "One | ``two``."},
        },
    }
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Whole"}}}}
    operation = {"description": "Make.", "requestBody": body, "responses": {"201": {}, "422": body}}
    schemas = {
        "ChatRequest": api["components"]["schemas"]["ChatRequest"],
        "Whole": fields,
        "Part": {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}},
    }
    page = render(
        {"paths": {"/v1/things": {"post": operation}}, "components": {"schemas": schemas}}
    )
    assert "| [`POST /v1/things`](#post-v1things) | Make. |" in page
    assert "Body: [Whole](#whole)." in page
    assert "Answers 201. [Refusals]" in page
    assert "| `many` | list of [Part](#part), 0 to 3 entries | required |  |" in page
    assert "| `share` | number, > 0, <= 1 |  |  |" in page
    assert "| `on` | boolean | `false` | One \\| `two`. |" in page
    assert "| `kind` | `a` or `b` |  |  |" in page
