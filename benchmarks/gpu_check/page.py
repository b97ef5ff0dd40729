"""``docs/gpu.md`` and README's sentence about GPUs, out of the results: ``python -m benchmarks.gpu_check.page``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.arms import ROOT
from benchmarks.gpu_check.fast import RATIOS
from benchmarks.gpu_check.findings import STARTED
from benchmarks.gpu_check.stages import STAGES

PAGE = ROOT / "docs" / "gpu.md"
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """\
# On a GPU

What `make gpu-check` found. `python -m benchmarks.gpu_check.page` writes this page out of
`benchmarks/results/gpu-*.json`; nothing here is written by hand.

<!-- not run: needs a GPU -->

```sh
make gpu-check BACKEND=gpu VENV=.venv-gpu    # all stages; --stages, --from and --minutes choose
make gpu-check ARGS=--dry-run                # tiny, on a CPU: checks the script, not the product
python -m benchmarks.gpu_check --plan        # what each stage takes, by calculation
```

| stage | what it shows |
|---|---|
{stages}
"""
NOT_RUN = "\nNot run yet.\n"
NOT_RUN_SENTENCE = "Nothing has been run on a GPU yet."
MARK = {True: "yes", False: "**no**", None: ""}

Results = dict[str, Any]


def load(folder: Path = RESULTS) -> list[Results]:
    """Return the results of all cards."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("gpu-*.json"))]


def findings(results: Results, stage: str) -> list[dict[str, Any]]:
    """Return what a stage found; nothing when it did not run."""
    found: list[dict[str, Any]] = results["stages"].get(stage, {}).get("findings", [])
    return found


def card(results: Results) -> str:
    """Return the card's name; of a run without the first stage as torch has it."""
    names = [f["numbers"].get("card") for f in findings(results, "environment")]
    return next((name for name in names if name), results["gpu"] or "no GPU")


def loads(results: Results) -> list[dict[str, Any]]:
    """Return the measurements beside stock, of both stages that have some."""
    both = findings(results, "fast") + findings(results, "families")
    return [finding for finding in both if "load" in finding["numbers"]]


def sentence(results: Results) -> str:
    """Return README's sentence about one card; empty where no stage says anything of answers or speed."""
    checks = [
        f["ok"]
        for f in findings(results, "right")
        if f["numbers"].get("check") not in (None, *STARTED.values())
    ]
    parts = [f"{sum(checks)} of {len(checks)} checks of the answers pass"] if checks else []
    for budget in (1.0, 0.25):
        ratios = [
            f["numbers"]["ratios"]["requests_per_s"]
            for f in loads(results)
            if f["numbers"]["budget"] == budget
        ]
        if ratios:
            parts.append(
                f"budget {budget} gives {min(ratios):.2f} to {max(ratios):.2f} times stock's requests/s"
            )
    said = f"On one {card(results)} {'; '.join(parts)} ([docs/gpu.md](docs/gpu.md))."
    return said if parts else ""


def readme_sentence(folder: Path = RESULTS) -> str:
    """Return README's sentence about GPUs."""
    return " ".join(filter(None, map(sentence, load(folder)))) or NOT_RUN_SENTENCE


def speed_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the measurements beside stock as markdown."""
    names = list(RATIOS.values())
    lines = [
        f"| shape, load | budget | stock s | {' | '.join(names)} | of what FLOPs predict |",
        f"|{'---|' * (len(names) + 4)}",
    ]
    for row in rows:
        numbers = row["numbers"]
        ratios = [numbers["ratios"].get(name) for name in RATIOS]
        shown = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        share = numbers.get("measured_over_predicted")
        predicted = "" if share is None else f"{share:.2f} of {numbers['predicted']:.2f}"
        name = row["name"].removesuffix(f" at {numbers['budget']}")
        wall = numbers["stock"]["wall_s"]
        lines.append(f"| {name} | {numbers['budget']} | {wall:.2f} | {shown} | {predicted} |")
    return lines


def right_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the ways of running, each with what was compared, as markdown."""
    checks = list(dict.fromkeys(row["numbers"]["check"] for row in rows))
    checks.sort(key=lambda check: (check not in STARTED.values(), check))
    by_way: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["numbers"]["way"], {})[row["numbers"]["check"]] = row
    lines = [f"| way | {' | '.join(checks)} |", f"|{'---|' * (len(checks) + 1)}"]
    for way, found in by_way.items():
        cells = [cell(found[check]) if check in found else "" for check in checks]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def cell(row: dict[str, Any]) -> str:
    """Return what a comparison found, in a word."""
    numbers = row["numbers"]
    equal = numbers.get("equal", numbers.get("within"))
    shown = MARK[row["ok"]] if equal is None else f"{equal} of {numbers['total']}"
    return shown if row["ok"] else f"**{shown}, no**"


def plain_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return other findings as markdown."""
    lines = ["| | right | |", "|---|---|---|"]
    return lines + [f"| {row['name']} | {MARK[row['ok']]} | {row['text']} |" for row in rows]


def run(meta: dict[str, Any]) -> str:
    """Return when and how a stage ran."""
    how = {"dry_run": "a dry run", "fast_start": "with --fast-start"}
    said = [f"{meta['date']}", f"commit {meta['commit']}"]
    return ", ".join(said + [words for name, words in how.items() if meta.get(name)])


def section(results: Results) -> str:
    """Return the part about one card."""
    lines = [f"## {card(results)}"]
    for stage in STAGES:
        entry = results["stages"].get(stage.name)
        lines += ["", f"### {stage.name}", ""]
        if entry is None:
            lines.append("Not run yet.")
            continue
        lines += [f"{run(entry['meta'])}. Outcome: {entry['outcome']}.", ""]
        beside = [f for f in entry["findings"] if "load" in f["numbers"]]
        ways = [f for f in entry["findings"] if "way" in f["numbers"]]
        others = [f for f in entry["findings"] if f not in beside and f not in ways]
        if ways:
            lines += ["Answers that agree: all tokens, but for near ties.", "", *right_table(ways)]
        if others:
            lines += plain_table(others)
        if beside:
            lines += [
                "",
                "VTR over stock: requests/s and running above 1 are better, times and KV below 1.",
                "",
                *speed_table(beside),
            ]
    return "\n".join(lines) + "\n"


def page(all_results: list[Results]) -> str:
    """Return the page."""
    stages = "\n".join(f"| {stage.name} | {stage.shows} |" for stage in STAGES)
    parts = "\n".join(section(results) for results in all_results)
    return HEAD.format(stages=stages) + ("\n" + parts if parts else NOT_RUN)


def main() -> None:
    """Write the page, and print README's sentence."""
    PAGE.write_text(page(load()))
    print(readme_sentence())


if __name__ == "__main__":
    main()
