"""Demo accuracy at each budget: ``python -m benchmarks.accuracy --help``.

One VTR engine answers the same questions under every schedule, all schedules of a question in one
batch. An answer counts when it equals the expected word exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arms import ENVIRONMENT, PLUGINS
from benchmarks.record import measured_with, save, say
from benchmarks.shapes import Shape, make_shape
from vtr_vllm import demo
from vtr_vllm.errors import InvalidBudget
from vtr_vllm.schedules import (
    FIRST_ATTENTION_CUT,
    ModelGeometry,
    Schedule,
    ScheduleBook,
    flops_fraction,
)

BUDGETS = (0.5, 0.25, 0.125)
FORMS = ("p-sigmoid", "fastv", "pdrop", "random")
SCENES_PER_BATCH = 32
ANSWER_TOKENS = 4  # one word and the end token, with room to be wrong
TEXT_TOKENS = 10  # of a usual demo prompt, for the FLOPs column
Z95 = 1.959964


@dataclass
class Score:
    """Right answers of one schedule on one split."""

    n: int = 0
    right: int = 0
    kinds: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    """By kind of question: asked and right."""

    def add(self, kind: str, right: bool) -> None:
        """Count one answer."""
        self.n += 1
        self.right += right
        self.kinds[kind][0] += 1
        self.kinds[kind][1] += right

    def interval(self) -> tuple[float, float]:
        """Return the 95% interval of the share (Wilson)."""
        share, z2 = self.right / self.n, Z95 * Z95
        middle = (share + z2 / (2 * self.n)) / (1 + z2 / self.n)
        root = (share * (1 - share) / self.n + z2 / (4 * self.n * self.n)) ** 0.5
        half = Z95 * root / (1 + z2 / self.n)
        return middle - half, middle + half


@dataclass(frozen=True)
class Row:
    """One line of the table; ``schedule`` is None where the form cannot reach the budget."""

    form: str
    budget: float
    schedule: Schedule | None


def rows(geometry: ModelGeometry, folder: Path | None) -> list[Row]:
    """Return what is measured: no reduction, stored schedules if any, then every form."""
    book = ScheduleBook.from_folder(geometry, folder) if folder else ScheduleBook(geometry)
    found = [Row("full", 1.0, book.by_name("full"))]
    for budget in BUDGETS:
        selection = book.for_budget(budget)
        if selection.source == "searched":
            found.append(Row("searched", budget, selection.schedule))
        for form in FORMS:
            try:
                found.append(Row(form, budget, book.by_name(f"{form}-{budget}")))
            except InvalidBudget:
                found.append(Row(form, budget, None))
    return found


class Engine:
    """One VTR engine for all schedules."""

    def __init__(self, shape: Shape) -> None:
        os.environ.update(ENVIRONMENT, VLLM_PLUGINS=PLUGINS["vtr"])
        from vllm import LLM  # after the environment is set

        from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS

        args = shape.engine_args(eager=True)
        args |= {"max_num_seqs": 64, "mm_processor_cache_gb": 1}
        self.llm = LLM(**args, worker_cls=WORKER_CLS, scheduler_cls=SCHEDULER_CLS)

    def answers(self, asked: list[tuple[demo.Sample, Schedule]]) -> list[str]:
        """Return the answer to each question under its schedule."""
        from vllm import SamplingParams

        prompts = [
            {"prompt": demo.prompt(s.question), "multi_modal_data": {"image": s.image}}
            for s, _ in asked
        ]
        params = [
            SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, extra_args=schedule.wire())
            for _, schedule in asked
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0].text.strip() for output in outputs]


def score_split(engine: Engine, split: str, n: int, table: list[Row]) -> Iterator[list[Score]]:
    """Yield the scores so far of every row, after each batch."""
    schedules = [row.schedule for row in table]
    scores = [Score() for _ in table]
    for first in range(0, n, SCENES_PER_BATCH):
        samples = [demo.sample(split, i) for i in range(first, min(n, first + SCENES_PER_BATCH))]
        asked = [
            (index, sample, schedule)
            for sample in samples
            for index, schedule in enumerate(schedules)
            if schedule is not None
        ]
        answers = engine.answers([(sample, schedule) for _, sample, schedule in asked])
        for (index, sample, _), answer in zip(asked, answers, strict=True):
            scores[index].add(sample.kind, answer == sample.answer)
        yield scores


def describe(row: Row, shape: Shape, scores: dict[str, Score]) -> dict[str, Any]:
    """Return one row for the results file."""
    facts: dict[str, Any] = {"form": row.form, "budget": row.budget}
    if row.schedule is None:
        return {**facts, "least_budget": FIRST_ATTENTION_CUT / shape.geometry.layers}
    counts = row.schedule.counts(shape.vision_tokens)
    facts |= {
        "schedule": row.schedule.name,
        "keep": list(row.schedule.keep),
        "mean_keep": sum(counts) / len(counts) / shape.vision_tokens,
        "flops_fraction": flops_fraction(shape.geometry, counts, shape.vision_tokens, TEXT_TOKENS),
        "splits": {},
    }
    for split, score in scores.items():
        low, high = score.interval()
        facts["splits"][split] = {
            "n": score.n,
            "right": score.right,
            "share": score.right / score.n,
            "low": low,
            "high": high,
            "kinds": dict(score.kinds),
        }
    return facts


def _chosen(meta: dict[str, Any]) -> str:
    """Return the model and the schedules, where they are not those by default."""
    options = meta.get("options", {})
    found = [(name, options.get(name)) for name in ("checkpoint", "schedules")]
    return "".join(f", {name} {value}" for name, value in found if value)


def render(results: dict[str, Any]) -> str:
    """Return the table as markdown."""
    meta, splits = results["meta"], results["meta"]["splits"]
    lines = [
        f"Exact match on the demo splits, {meta['n']} questions each, 95% binomial interval."
        f" Measured {meta['date']} on {meta['cpu']}, commit {meta['commit']}, {meta['dtype']}"
        f"{_chosen(meta)}. Mean keep and FLOPs come from whole token counts.\n",
        f"| form | budget | mean keep | FLOPs | {' | '.join(splits)} |",
        f"|---|---|---|---|{'---|' * len(splits)}",
    ]
    for row in results["rows"]:
        head = f"| {row['form']} | {row['budget']} |"
        if "least_budget" in row:
            text = f" not reachable (least {row['least_budget']:.3f}) |"
            lines.append(head + " |" * 2 + text + " |" * (len(splits) - 1))
            continue
        cells = [f"{row['mean_keep']:.3f}", f"{row['flops_fraction']:.3f}"]
        for split in splits:
            s = row["splits"][split]
            cells.append(f"{s['share']:.3f} [{s['low']:.3f}, {s['high']:.3f}]")
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--split", choices=demo.SPLITS, action="append", help="default all")
    parser.add_argument("--n", type=int, default=1000, help="questions per split")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy.json"))
    parser.add_argument("--checkpoint", type=Path, help="demo checkpoint instead of the packaged")
    parser.add_argument("--schedules", type=Path, help="folder of searched schedules to include")
    parser.add_argument("--dtype", help="default bfloat16; float32 on a CPU without AVX-512 BF16")
    parser.add_argument("--table", type=Path, help="print the table of a results file and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write JSON and markdown, print the table."""
    options = parse(arguments)
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return
    try:
        shape = make_shape("demo", Path(), options.checkpoint, has_gpu=False, dtype=options.dtype)
    except FileNotFoundError as error:
        sys.exit(f"benchmarks.accuracy: {error}")
    table = rows(shape.geometry, options.schedules)
    splits = options.split or list(demo.SPLITS)
    engine = Engine(shape)
    scores: dict[str, list[Score]] = {}
    for split in splits:
        begun = time.monotonic()
        for so_far in score_split(engine, split, options.n, table):
            scores[split] = so_far
            say(f"{split}: {so_far[0].n} of {options.n} in {time.monotonic() - begun:.0f} s")
    meta = {**measured_with(options), "n": options.n, "splits": splits, "dtype": shape.dtype}
    described = [
        describe(row, shape, {split: scores[split][index] for split in splits})
        for index, row in enumerate(table)
    ]
    results = {"meta": meta, "rows": described}
    save(options.out, results, render(results))


if __name__ == "__main__":
    main()
