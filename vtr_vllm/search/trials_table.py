"""Every trial of a search as a table, for pandas and spreadsheets."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtr_vllm.whole_file import whole_file

NAME = "trials.csv"
_FIRST = ("search", "budget", "order", "value", "accuracy", "layer", "count", "mean_keep")


def write_trials(folder: Path, search: Mapping[str, Any]) -> Path:
    """Write ``trials.csv`` from search.json: one row a trial, and one a stage of a G-Search.

    ``search`` has the known parts of search.json. ``order`` counts from 0 within a search and
    budget. What a row has not is empty: a trial has parameters and a budget, a stage of a G-Search
    its first layer, the vision tokens that it keeps, and the mean keep rate so far. OSError passes
    through.
    """
    rows = [
        {**{name: trial[name] for name in _FIRST[:5]}, **trial["parameters"]}
        for trial in search["trials"]
    ]
    for found in search["g_search"]:
        for order, step in enumerate(found["steps"]):
            shared = {name: step[name] for name in ("value", "accuracy", "layer", "count")}
            mean = step["mean_keep"]
            rows.append({"search": found["name"], "order": order, **shared, "mean_keep": mean})
    parameters = dict.fromkeys(name for row in rows for name in row if name not in _FIRST)
    with whole_file(folder / NAME) as file:
        writer = csv.DictWriter(file, [*_FIRST, *parameters], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder / NAME
