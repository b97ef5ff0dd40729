"""The project's own tests on the GPU, in fp32, in several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.arms import ROOT
from benchmarks.gpu_check.findings import Report

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rA", "-m", "engine")
ENVIRONMENT = {"TRITON_F32_DEFAULT": "ieee"}
"""Triton computes products of fp32 in TF32 by itself, which the tests' tolerance does not allow."""
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR) (\S+)", re.MULTILINE)
MOST_LOG = 60_000


class Run:
    """One process of tests."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._begun = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *PYTEST, *arguments],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )

    def say(self, report: Report) -> None:
        """Wait for it and say how it went."""
        self._process.wait()
        text = self.log.read_text(errors="replace")
        outcomes = OUTCOME.findall(text)
        bad = [test for outcome, test in outcomes if outcome != "PASSED"]
        report.say(
            f"tests of {self.name}, fp32",
            bool(outcomes) and self._process.returncode == 0,
            f"{len(outcomes) - len(bad)} of {len(outcomes)} pass",
            seconds=time.monotonic() - self._begun,
            failed=bad,
            log=text[-MOST_LOG:] if self._process.returncode else "",
        )
