"""The folder of several processes' metrics: what an earlier start left, and what is in use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.contract.source import ROOT
from vtr_server.operations.metric_files import begin_metric_files, forget_the_dead

KILLED = """
import os, signal
from vtr_server.operations import limit_metrics, metrics
for _ in range(3):
    limit_metrics.observe_in_flight(1)
metrics.observe_outcome("ok", tier="full", source="full")
metrics.observe_ready(True)
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
WAITS = """
import sys
from vtr_server.operations import limit_metrics, metrics
limit_metrics.observe_in_flight(1)
metrics.observe_outcome("ok", tier="full", source="full")
print("told", flush=True)
sys.stdin.read()
"""
STARTS = """
import os
from vtr_server.operations.metric_files import begin_metric_files
begin_metric_files(os.environ, os.getpid())
from vtr_server.operations import metrics
from vtr_server.operations.exposition import exposition
print(exposition("")[0].decode())
"""


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, code: str) -> str:
    return start(folder, code).communicate(timeout=120)[0]


def series(text: str) -> dict[str, float]:
    found = re.findall(r"^(vtr_[a-z_]+(?:{.*})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


OK = 'vtr_requests_total{outcome="ok",source="full",tier="full"}'


def test_a_start_after_a_kill_begins_anew_beside_one_that_lives(tmp_path: Path) -> None:
    run(tmp_path, KILLED)
    assert list(tmp_path.glob("*.db"))
    with start(tmp_path, WAITS) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "told\n"
        served = series(run(tmp_path, STARTS))
        neighbour.communicate()
    assert served["vtr_in_flight_requests"] == 1, "the neighbour's"
    assert served[OK] == 1
    assert served.get("vtr_ready", 0) == 0


def test_of_a_process_whose_number_is_in_use_again_nothing_stays(tmp_path: Path) -> None:
    """As in a container, where the first process always has the same number."""
    old = tmp_path / f"gauge_livesum_{os.getppid()}.db"
    own = tmp_path / f"counter_{os.getpid()}.db"
    for file in (old, own):
        file.touch()
    assert forget_the_dead(tmp_path, os.getpid()) == [own.name]
    os.utime(old, (1e9, 1e9))  # written before that process began
    assert forget_the_dead(tmp_path, os.getpid()) == [old.name]


def test_what_is_no_file_of_metrics_is_left_alone(tmp_path: Path) -> None:
    names = ["notes.txt", "my.db", "counter_x.db"]
    for name in names:
        (tmp_path / name).touch()
    assert forget_the_dead(tmp_path, 1) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)


def test_the_folder_is_made_where_one_is_named(tmp_path: Path) -> None:
    begin_metric_files({}, os.getpid())
    begin_metric_files({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "a" / "b")}, os.getpid())
    assert (tmp_path / "a" / "b").is_dir()
