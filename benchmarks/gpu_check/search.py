"""Stage 6: how fast a search evaluates candidates: one engine, the demo's calibration questions."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.gpu_check.fast import parse
from benchmarks.gpu_check.findings import Report
from benchmarks.optimality import candidate
from benchmarks.rankings.samples import SUBJECTS
from benchmarks.study import open_study, questions
from vtr_vllm.search.study import Study

STARTS = (2, 4, 6, 8)
COUNTS = ((96, 72, 48, 24), (72, 48, 24, 12), (48, 24, 12, 6))


def measure(study: Study, report: Report, items: int, dry_run: bool) -> None:
    """Report how fast the model is evaluated unreduced, then under a curve or several."""
    begun = time.monotonic()
    full = study.unreduced()
    report.say(
        "unreduced",
        None,
        f"{items} items in {time.monotonic() - begun:.1f} s, accuracy {full.accuracy:.3f}",
    )
    layers, n = study.geometry.layers, study.n_vision
    for counts in COUNTS[: 1 if dry_run else None]:
        begun = time.monotonic()
        curve = candidate(counts, STARTS, layers, n)
        (found,) = study.evaluate("gpu-check", [curve], floor=0.0)
        seconds = time.monotonic() - begun
        report.say(
            f"candidate {counts}",
            None,
            f"{items / seconds:.0f} items/s, {60 / seconds:.1f} evaluations of {items} items a"
            f" minute, accuracy {found.accuracy:.3f}",
            seconds=seconds,
            items=items,
        )


def main() -> None:
    """Run the stage."""
    report, options = Report("search"), parse("search")
    items, demo = 8 if options.dry_run else 600, SUBJECTS["demo"]
    with tempfile.TemporaryDirectory() as folder:
        data = questions(demo, "calibration", items, Path(folder))
        with open_study(demo, data, Path(folder), engines=1) as study:
            measure(study, report, items, options.dry_run)


if __name__ == "__main__":
    main()
