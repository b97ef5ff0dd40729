"""What counts as passed, and what a server's own count says."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import clients
from benchmarks.clients import Outcome, Setting, counted, direct, measure, table

METRICS = """\
# TYPE vtr_requests_total counter
vtr_requests_total{outcome="ok",source="full",tier="full"} 50.0
vtr_requests_total{outcome="ok",source="searched",tier="economy"} 30.0
vtr_requests_total{outcome="ok",source="interpolated",tier="economy"} 20.0
vtr_requests_total{outcome="client_error",source="full",tier="full"} 7.0
vtr_requests_created{outcome="ok",source="full",tier="full"} 1.7e+09
"""


def test_good_answers_are_counted_by_tier() -> None:
    assert counted(METRICS) == {"full": 50, "economy": 50}
    assert counted(METRICS) - counted(METRICS) == {}


def test_passed_is_said_by_client_and_server() -> None:
    tiers = {"full": 100, "balanced": 60, "economy": 40}
    good = Outcome("c", 200, 200, [], tiers)
    assert good.passed
    assert not Outcome("c", 200, 200, ["one"], tiers).passed
    assert not Outcome("c", 200, 199, [], tiers).passed
    assert not Outcome("c", 200, 200, [], tiers | {"full": 99}).passed
    assert not Outcome("c", 200, 200, [], {"full": 200}).passed
    assert not Outcome("c", 200, 200, [], tiers, absent="not installed").passed


def test_a_client_that_is_absent_is_not_counted_as_passed() -> None:
    said = table([Outcome("guidellm", 200, absent="not installed")])
    assert "not installed" in said
    assert "passed" not in said


def test_a_proxy_of_the_environment_is_not_asked(
    loopback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(setting: Setting) -> Outcome:
        asked = clients.run_openai(setting)
        assert "501" in asked.errors[0]  # the server's own: it takes no POST
        return asked

    monkeypatch.setattr(clients, "CLIENTS", {"openai": run})
    (outcome,) = measure(loopback, argparse.Namespace(requests=1, client=None, guidellm=None))
    assert outcome.counted == {}
    assert direct("http://[::1]:8000")["NO_PROXY"] == "::1"
