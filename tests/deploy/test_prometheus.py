"""Scrape configuration and rules: valid, tested one by one, about metrics that exist."""

from __future__ import annotations

import re

import yaml

from tests.contract.source import ROOT
from tests.deploy import dashboards
from tests.deploy.tools import DEPLOY, RULES, rules, run, tool
from vtr_server.operations import adaptive_metrics, limit_metrics, metrics

FOLDER = DEPLOY / "prometheus"


def our_metrics() -> set[str]:
    """Every sample name that the server can serve under ``vtr_``."""
    names = set()
    modules = (metrics, adaptive_metrics, limit_metrics)
    for metric in (value for module in modules for value in vars(module).values()):
        name, kind = getattr(metric, "_name", ""), getattr(metric, "_type", "")
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
        names |= {name + end for end in ends.get(kind, [])}
    return names


def test_configuration_and_rules_are_valid() -> None:
    run(tool("promtool"), "check", "config", FOLDER / "prometheus.yml")
    run(tool("promtool"), "check", "rules", *RULES)


def test_rules_do_what_their_tests_say() -> None:
    run(tool("promtool"), "test", "rules", *sorted((FOLDER / "tests").glob("*.yml")))


def test_every_alert_is_tested_firing_and_quiet() -> None:
    tests = yaml.safe_load((FOLDER / "tests" / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    alerts = {rule["alert"] for rule in rules("alert")}
    assert firing == alerts
    assert quiet == alerts


def test_every_alert_says_what_to_do() -> None:
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("page", "ticket", "info"), rule
        assert rule["annotations"].keys() == {"summary", "action"}, rule


def test_rules_and_panels_ask_for_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    texts = [rule["expr"] for rule in rules("expr")] + [
        query.text for query in dashboards.queries()
    ]
    for text in texts:
        asked = set(re.findall(r"(?<![\w:])vtr_\w+", text))
        assert asked <= our_metrics(), text
        assert set(re.findall(r"\bjob\w*:\w+:\w+", text)) <= recorded, text


def test_the_docs_list_the_alerts() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    listed = dict(re.findall(r"^\| `(VTR\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert listed == {rule["alert"]: rule["labels"]["severity"] for rule in rules("alert")}
