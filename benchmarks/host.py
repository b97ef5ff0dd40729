"""What a step costs the host, beside stock vLLM: ``python -m benchmarks.host --help``.

A decoder of 32 layers so narrow that its arithmetic is next to nothing: what is left is the scheduler,
the runner and each layer's Python. On a GPU that is the work that no kernel hides. Both arms run the real
scheduler, worker and runner, in turn; a step is timed with what it calls, and once its operations are
counted, which a device would be given one by one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm, log_folder
from benchmarks.record import measured_with, save, say, write
from benchmarks.report import measured, show
from benchmarks.shapes import make_shape
from vtr_vllm.schedules import ScheduleBook

SHAPE = "narrow"
ENGINE = {"max_num_seqs": 256, "max_model_len": 512}
PARTS = ("schedule", "update", "model")
"""Of a step: the scheduler before and after it, and the worker."""


@dataclass(frozen=True)
class Case:
    """Steps to time."""

    phase: str
    """decode, or prefill: one step that holds all prompts."""
    running: int
    budget: float = 1.0
    image: bool = True
    """One in each request; else eight words."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        what = f"{self.budget:g}" if self.image else "text"
        return f"{self.phase}, {self.running}, {what}"


CASES = (
    *(Case("decode", running, image=False) for running in (1, 32, 256)),
    *(Case("decode", running, budget) for budget in (1.0, 0.25) for running in (1, 32)),
    *(Case("prefill", running, budget) for budget in (1.0, 0.25) for running in (1, 8)),
)
Found = dict[str, dict[str, dict[str, Any]]]
"""By case, by arm: milliseconds of a step and of its parts, and its operations."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case in every round, stock and VTR in turn; the file is written anew after each."""
    results: dict[str, Any] = {"meta": measured_with(options), "rounds": []}
    with tempfile.TemporaryDirectory(prefix="vtr-host-models-") as scratch:
        shape = make_shape(SHAPE, Path(scratch), None, has_gpu=False, dtype="float32")
        book = ScheduleBook(shape.geometry)

        def arm(name: str, logs: Path) -> Arm:
            log = logs / f"{name}.log"
            return Arm(name, shape, True, log, options.threads, "benchmarks.host_worker", ENGINE)

        with log_folder("host") as logs, arm("stock", logs) as stock, arm("vtr", logs) as vtr:
            for number in range(options.rounds + 1):
                found: Found = {}
                for case in CASES:
                    wire = (
                        book.for_budget(case.budget, reuse=False).schedule.wire()
                        if case.budget < 1
                        else None
                    )
                    order = [(stock, None), (vtr, wire)]
                    for each, given in order if number % 2 else order[::-1]:
                        made = each.measure({**asdict(case), "wire": given, "steps": options.steps})
                        found.setdefault(case.name, {})[each.name] = made
                if number:  # the first meets every shape for the first time
                    results["rounds"].append(found)
                    write(options.out, results)
                    say(f"round {number} of {options.rounds}")
    return results


def table(rounds: list[Found]) -> str:
    """Return medians over the rounds, and VTR over stock within them."""
    heads = ("step ms", *(f"{part} ms" for part in PARTS))
    lines = [
        f"| phase, running, budget | {' | '.join(heads)} | VTR / stock | operations |",
        f"|---|{'---|' * (len(heads) + 2)}",
    ]
    for name in rounds[0]:
        mine = [found[name] for found in rounds]
        cells = []
        for key in ("step", *PARTS):
            stock, vtr = (
                statistics.median(each[arm][key] for each in mine) for arm in ("stock", "vtr")
            )
            cells.append(f"{stock:.2f} / {vtr:.2f}")
        ratios = [each["vtr"]["step"] / each["stock"]["step"] for each in mine]
        cells.append(show((statistics.median(ratios), min(ratios), max(ratios))))
        counts = [mine[-1][arm]["operations"] for arm in ("stock", "vtr")]
        cells.append(f"{counts[0]} / {counts[1]}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48, help="decode steps timed in each round")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each engine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON and Markdown."""
    options = parse(arguments)
    results = run(options)
    heading = measured(results["meta"], "rounds", "steps", "threads")
    text = f"{heading}\n\n{table(results['rounds'])}"
    save(options.out, results, text)


if __name__ == "__main__":
    main()
