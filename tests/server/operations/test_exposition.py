"""What GET /metrics answers where several processes keep their numbers in files."""

from __future__ import annotations

from pathlib import Path

from tests.server.operations.test_metric_files import run, series

ASKED = """
from vtr_server.operations import metrics
from vtr_server.operations.exposition import exposition
metrics.observe_ready(True)
metrics.observe_draining()
print(exposition("", ["vtr_draining"])[0].decode())
print(exposition("application/openmetrics-text", ["vtr_draining"])[0].decode())
"""


def test_names_choose_among_the_samples_of_all_processes(tmp_path: Path) -> None:
    text = run(tmp_path, ASKED)
    assert series(text) == {"vtr_draining": 1}
    assert text.count("\nvtr_draining 1") == 2
