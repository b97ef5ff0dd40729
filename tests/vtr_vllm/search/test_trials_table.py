"""The table of trials, read again as pandas would."""

import csv

from tests.vtr_vllm.search.report_records import search_record
from vtr_vllm.search.report_data import Search
from vtr_vllm.search.trials_table import write_trials


def test_every_trial_and_every_stage_is_a_row(tmp_path):
    search = Search.model_validate(search_record()).model_dump()
    with write_trials(tmp_path, search).open(newline="") as file:
        rows = list(csv.DictReader(file))
    trials, stages = rows[: len(search["trials"])], rows[len(search["trials"]) :]
    for row, trial in zip(trials, search["trials"], strict=True):
        assert (row["search"], int(row["order"])) == (trial["search"], trial["order"])
        assert float(row["budget"]) == trial["budget"]
        assert float(row["value"]) == trial["value"]
        for name, value in trial["parameters"].items():
            assert float(row[name]) == value
        assert row["layer"] == row["count"] == ""
    steps = [(found["name"], step) for found in search["g_search"] for step in found["steps"]]
    for row, (name, step) in zip(stages, steps, strict=True):
        assert (row["search"], row["budget"]) == (name, "")
        assert (int(row["layer"]), int(row["count"])) == (step["layer"], step["count"])
        assert float(row["mean_keep"]) == step["mean_keep"]


def test_without_trials_there_are_heads(tmp_path):
    path = write_trials(tmp_path, {"trials": [], "g_search": []})
    assert path.read_text() == "search,budget,order,value,accuracy,layer,count,mean_keep\n"
