"""The dashboard and its provisioning, without a Grafana: queries parse, panels fit, names agree.

That every query returns data from a loaded server is tested in tests/server/operations/test_metrics.py.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import yaml

from tests.deploy import dashboards
from tests.deploy.tools import DEPLOY, run, tool

PROVISIONING = DEPLOY / "grafana" / "provisioning"


def test_queries_parse(tmp_path: Path) -> None:
    rules = [{"record": "parsed", "expr": query.text} for query in dashboards.queries()]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(tool("promtool"), "check", "rules", file)


def test_every_panel_has_a_query_a_unit_and_words() -> None:
    for panel in dashboards.panels():
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboards.load()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for a, b in combinations([panel["gridPos"] for panel in everything], 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart = apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, (a, b)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in everything)


def test_variables_are_defined_and_the_data_source_is_provisioned() -> None:
    dashboard = dashboards.load()
    assert "__inputs" not in dashboard
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = json.dumps(dashboard)
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used <= defined
    sources = {
        target["datasource"]["uid"] for panel in dashboards.panels() for target in panel["targets"]
    }
    assert sources == {"${datasource}"}
    provisioned = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    (chosen,) = [v for v in dashboard["templating"]["list"] if v["name"] == "datasource"]
    assert chosen["current"]["value"] == provisioned["datasources"][0]["uid"]
