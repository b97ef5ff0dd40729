"""Stage 5: the engine's own tests and those of all families, and two more shapes as in stage 3."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.gpu_check.fast import measure, parse
from benchmarks.gpu_check.findings import Report
from benchmarks.gpu_check.pytest_runs import Run

SHAPES = ("internvl2-8b", "qwen2.5-vl-7b")
PROCESSES = 4
ENGINE_TESTS = {
    "worker": ["tests/vtr_vllm/engine/worker"],
    "scheduler": ["tests/vtr_vllm/engine/scheduler", "tests/vtr_vllm/engine/frontend"],
}
FAMILY_TESTS = "tests/families/test_families.py"
DRY_TESTS = ["tests/vtr_vllm/engine/scheduler/test_utilities.py::test_reports_add_up"]
"""No engine: on a CPU the default tests start them."""


def groups(names: list[str], count: int) -> list[list[str]]:
    """Return ``names`` dealt out to ``count`` processes."""
    return [names[at::count] for at in range(count) if names[at::count]]


def runs(dry_run: bool) -> dict[str, list[str]]:
    """Return pytest's arguments of each process."""
    if dry_run:
        return {"no engine": DRY_TESTS}
    from tests.families.table import FAMILIES  # transformers behind it

    names = [family.name for family in FAMILIES]
    families = {
        f"families {number}": [FAMILY_TESTS, "-k", " or ".join(f"[{name}]" for name in group)]
        for number, group in enumerate(groups(names, PROCESSES))
    }
    return ENGINE_TESTS | families


def main() -> None:
    """Run the stage."""
    report, options = Report("families"), parse("families")
    end = time.monotonic() + options.seconds - 30
    with tempfile.TemporaryDirectory() as folder:
        started = [Run(name, given, Path(folder)) for name, given in runs(options.dry_run).items()]
        for run in started:
            run.say(report)
    if options.dry_run:
        return
    for shape in SHAPES:  # last: the tests' processes would disturb the clock
        measure(report, shape, False, options.fast_start, end - time.monotonic())


if __name__ == "__main__":
    main()
