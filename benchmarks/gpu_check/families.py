"""Stage 5: the families. Their tiny checkpoints as in stage 2, and two more shapes as in stage 3."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arms import ROOT
from benchmarks.gpu_check.fast import measure, parse
from benchmarks.gpu_check.findings import Report
from tests.families.table import FAMILIES

SHAPES = ("internvl2-8b", "qwen2.5-vl-7b")
PROCESSES = 4


def groups(names: list[str], count: int) -> list[list[str]]:
    """Return ``names`` dealt out to ``count`` processes."""
    return [names[at::count] for at in range(count) if names[at::count]]


class FamilyTests:
    """The tests of all families in fp32, in several processes."""

    def __init__(self, folder: Path, names: list[str], processes: int) -> None:
        self.begun = time.monotonic()
        self.runs = []
        for number, names_of_one in enumerate(groups(names, processes)):
            log = folder / f"families-{number}.log"
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"),
                    *("-rA", "-m", "engine", "tests/families/test_families.py", "-k"),
                    " or ".join(f"[{name}]" for name in names_of_one),
                ],
                cwd=ROOT,
                env=os.environ | {"TRITON_F32_DEFAULT": "ieee"},
                stdout=log.open("wb"),
                stderr=subprocess.STDOUT,
            )
            self.runs.append((process, log))

    def say(self, report: Report) -> None:
        """Wait for them and say of each family how it went."""
        outcomes: dict[str, list[bool]] = {}
        logs = ""
        for process, log in self.runs:
            process.wait()
            text = log.read_text(errors="replace")
            logs += text[-60_000:] if process.returncode else ""
            for outcome, name in re.findall(
                r"^(PASSED|FAILED|ERROR) \S+?\[([^\]]+)\]", text, re.MULTILINE
            ):
                outcomes.setdefault(name, []).append(outcome == "PASSED")
        good = [name for name, passed in outcomes.items() if all(passed)]
        report.say(
            "families, fp32",
            bool(outcomes) and len(good) == len(outcomes),
            f"{len(good)} of {len(outcomes)} families pass all their tests"
            f" ({sum(map(len, outcomes.values()))} in all)",
            seconds=time.monotonic() - self.begun,
            passed=good,
            failed=sorted(set(outcomes) - set(good)),
            log=logs,
        )


def main() -> None:
    """Run the stage."""
    report, options = Report("families"), parse("families")
    end = time.monotonic() + options.seconds - 30
    names = [family.name for family in FAMILIES]
    with tempfile.TemporaryDirectory() as folder:
        if options.dry_run:
            FamilyTests(Path(folder), names[:1], 1).say(report)
            return
        tests = FamilyTests(Path(folder), names, PROCESSES)
        tests.say(report)  # first: their processes would disturb the clock
        for shape in SHAPES:
            measure(report, shape, False, options.fast_start, end - time.monotonic())


if __name__ == "__main__":
    main()
