"""The dashboard's queries, as Grafana would send them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.deploy.tools import DEPLOY

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "vtr.json"


class Query(NamedTuple):
    """One query of a panel; ``text`` has Grafana's variables replaced."""

    panel: str
    text: str


def load() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def panels() -> list[dict[str, Any]]:
    """Everything but the row titles."""
    return [panel for panel in load()["panels"] if panel["type"] != "row"]


def queries(job: str = "vtr", instance: str = ".*", window: str = "1m") -> list[Query]:
    """The queries of all panels, with the variables set."""
    given = {"$__rate_interval": window, "$job": job, "$instance": instance}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in given.items():
                text = text.replace(name, value)
            found.append(Query(panel["title"], text))
    return found
