"""A server lives as long as its block, and is asked without a proxy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.serving import Served

SCRIPT = """
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
print("up", flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


class Small(Served):
    """A server that answers everything."""

    def __init__(self, folder: Path, script: str = SCRIPT) -> None:
        self._start(["-c", script], dict(os.environ), folder / "server.log")


def test_a_proxy_of_the_environment_is_not_asked(proxied: None, tmp_path: Path) -> None:
    with Small(tmp_path) as server:
        assert server.url.startswith("http://127.0.0.1:")


def test_the_log_goes_with_the_server_but_for_a_failure(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    with Small(tmp_path / "good") as server:
        assert server.log.exists()
    with pytest.raises(ValueError, match="broken"), Small(tmp_path / "bad"):
        raise ValueError("broken")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_server_that_does_not_start_is_told_by_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no such model"),
        Small(tmp_path, "exit('no such model')"),
    ):
        raise AssertionError("healthy")
