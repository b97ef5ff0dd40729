"""``python -m benchmarks.rankings --help``: what ``benchmarks.rankings`` says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import rankings
from benchmarks.rankings.layers import measure_layers
from benchmarks.rankings.once import BUDGETS, compare
from benchmarks.rankings.samples import SUBJECTS
from benchmarks.rankings.tables import draw, render
from benchmarks.record import measured_with, save, say
from benchmarks.study import open_study, questions
from vtr_vllm.photo.parts import FOLDER


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; what has the model's name in it is made of ``--model``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rankings", description=rankings.__doc__
    )
    parser.add_argument("--model", choices=SUBJECTS, default="demo")
    parser.add_argument("--split", default="test")
    parser.add_argument("--samples", type=int, default=500, help="for the rankings by layer")
    parser.add_argument("--n", type=int, default=1000, help="questions to the engine")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--parts", type=Path, default=FOLDER, help="of the photo model's scenes")
    parser.add_argument("--folder", type=Path, help="default build/rankings-MODEL; a run goes on")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/rankings-MODEL.json")
    parser.add_argument("--figure", type=Path, help="default docs/assets/rankings-tau-MODEL.png")
    parser.add_argument("--table", type=Path, help="print the tables of a results file and end")
    options = parser.parse_args(arguments)
    options.folder = options.folder or Path(f"build/rankings-{options.model}")
    options.out = options.out or Path(f"benchmarks/results/rankings-{options.model}.json")
    options.figure = options.figure or Path(f"docs/assets/rankings-tau-{options.model}.png")
    return options


def _rounded(value: Any) -> Any:
    """``value`` with every number in it at three decimals."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    """Measure, write JSON, markdown and the heat map, print the tables."""
    options = parse(arguments)
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return
    subject = SUBJECTS[options.model]
    meta = measured_with(options)
    meta |= {name: meta["options"][name] for name in ("model", "split", "samples", "n")}
    shown = subject.shown(options.parts, options.split, options.samples)
    layers = measure_layers(subject.checkpoint, shown)
    say(f"{options.split}: ranked at every layer, {options.samples} samples")
    data = questions(subject, options.split, options.n, options.folder, options.parts)
    with open_study(subject, data, options.folder, options.engines) as study:
        engine = compare(study, tuple(options.budgets))
    results = _rounded({"layers": layers, "engine": engine}) | {"meta": meta}
    draw(results["layers"], options.figure)
    save(options.out, results, render(results))


if __name__ == "__main__":
    main()
