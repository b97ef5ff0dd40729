"""Schemathesis on our routes, as the running server describes them: valid and invalid requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance

from tests.server.conftest import NAME, Server
from tests.server.robustness.bodies import bounded
from tests.server.robustness.test_fuzz import is_error
from tests.server.robustness.watching import Neighbour, settled
from vtr_server.http.openapi import describe_api

FEW, MANY = 8, 1000
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
JOBS = "/v1/jobs"
"""Not served without [jobs]; then every path under it is one that no route has."""

pytestmark = pytest.mark.engine


@cache
def routes() -> list[tuple[str, str]]:
    """Ours; described when first asked for, as that takes seconds."""
    return [(method.upper(), path) for path, on in describe_api()["paths"].items() for method in on]


def operations(server: Server) -> list[Any]:
    """Our operations in the description of the running server."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return [each for each in found if (each.method.upper(), each.path) in routes()]


def attack(operation: Any, mode: GenerationMode, examples: int, start: int) -> int:
    """Send what Schemathesis makes of an operation; returns how many requests were answered."""
    answered = 0

    @seed(start)
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        nonlocal answered
        if isinstance(case.body, dict):
            bounded(case.body, operation.path)
            if mode is GenerationMode.POSITIVE:
                case.body["model"] = NAME  # any other is a 404, whatever else is in the body
        answer = case.call(timeout=120)
        case.validate_response(answer, checks=[not_a_server_error, content_type_conformance])
        what = f"{case.as_curl_command()[:2000]}: {answer.status_code} {answer.text[:300]}"
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == ["application/json"], what
            assert is_error(answer.json()["error"]), what
        answered += 1

    run()
    return answered


def attack_all(server: Server, examples: int, start: int) -> int:
    ours = operations(server)
    served = {(each.method.upper(), each.path) for each in ours}
    assert served >= {route for route in routes() if not route[1].startswith(JOBS)}
    answered = 0
    for operation in ours:
        few = examples if operation.path in GENERATING else 1
        modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
        answered += sum(attack(operation, mode, few, start) for mode in modes)
    return answered


def test_our_routes_keep_to_their_description(server: Server) -> None:
    assert attack_all(server, FEW, start=0) > len(routes())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_our_routes_keep_to_their_description_at_length(server: Server) -> None:
    import random

    start = random.randrange(10**9)
    with Neighbour(server) as neighbour:
        answered = attack_all(server, MANY, start)
    with server.client() as client:
        settled(client)
    print(f"{answered} requests grown from {start}, {neighbour.answered} answers beside")
