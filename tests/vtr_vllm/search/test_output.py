"""What lies in the folder while a search runs."""

import csv
import json
from dataclasses import replace

import pytest

from tests.vtr_vllm.search.resumable import META
from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, options
from vtr_vllm.schedules import Schedule, ScheduleBook
from vtr_vllm.search import pipeline
from vtr_vllm.search.journal import Journal
from vtr_vllm.search.output import Output, write_report
from vtr_vllm.search.pipeline import HeldOutScores
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.report_data import read_search
from vtr_vllm.search.study import Study

SETTINGS = options("p-sigmoid", budgets=[0.5, 0.375], trials=4, items=100)


class Running:
    """A search, and what its folder held each time that something was found."""

    def __init__(self, folder):
        self.folder = folder
        data = items(folder.parent, 200)
        evaluator = SimulatedEvaluator()
        journal = Journal("sqlite://", "a" * 32, evaluator.versions, 0)
        self.events = folder.parent / "events.jsonl"
        progress = Progress(self.events)
        parts = (type(data)(data.path, part) for part in (data.items[:100], data.items[100:]))
        self.study, selection = (
            Study(evaluator, part, journal, "accuracy", progress) for part in parts
        )
        self.output = Output(
            folder, META, data.sha256, self.study, HeldOutScores(selection), journal
        )
        self.seen = []
        self.result = result = pipeline.run(self.study, SETTINGS, self.more)
        self.before_the_end = self.look()
        self.output.write(result, finished=True)
        self.after = self.look()

    def more(self, result):
        self.output.write(result)
        self.seen.append(self.look())

    def look(self):
        record = read_search(self.folder / "report")
        return {
            "schedules": {p.stem: Schedule.load(p) for p in self.folder.glob("*.json")},
            "record": record,
            "report": {p.name for p in (self.folder / "report").iterdir()},
            "page": (self.folder / "report" / "index.html").read_text(),
        }


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    return Running(tmp_path_factory.mktemp("output") / "out")


def test_each_schedule_is_there_as_soon_as_it_is_found(running):
    names = [set(seen["schedules"]) for seen in running.seen]
    assert names == [
        {"g-search"},
        {"g-search", "searched-0.5"},
        {"g-search", "searched-0.5", "searched-0.375"},
    ]
    assert running.after["schedules"] == running.seen[-1]["schedules"]
    for schedule in running.seen[0]["schedules"].values():
        assert schedule.provenance["scores"]["n"] == 100
        assert schedule.provenance["items"]["search"] == 100


def test_a_server_can_serve_what_is_there_at_any_time(running):
    for seen in running.seen:
        ScheduleBook(running.study.geometry, seen["schedules"].values())


def test_report_and_plots_grow_with_it(running):
    first, second, third = running.seen
    assert {"index.html", "search.json", "trials.csv", "keep-rates.png"} <= first["report"]
    assert "trials.png" not in first["report"]
    assert "trials.png" in second["report"]
    assert [len(seen["record"]["trials"]) for seen in (first, second, third)] == [0, 4, 8]
    assert "searched-0.375" in third["page"]
    assert "searched-0.375" not in second["page"]


def test_the_report_says_whether_the_search_is_at_its_end(running):
    assert [seen["record"]["meta"]["finished"] for seen in running.seen] == [False] * 3
    assert running.after["record"]["meta"]["finished"] is True
    assert "Not at its end" in running.before_the_end["page"]
    assert "Not at its end" not in running.after["page"]


def test_what_was_found_is_told_once(running):
    told = [json.loads(line) for line in running.events.read_text().splitlines()]
    found = [event["schedules"] for event in told if event["kind"] == "found"]
    assert found == [["g-search"], ["searched-0.5"], ["searched-0.375"]]


def test_writing_often_costs_no_more(running):
    cost = running.output.selection.study.costs["selection"]
    assert (cost.evaluations, cost.reused) == (3, 0)


def test_the_progress_of_a_stage_goes_on_behind_the_selection(running):
    """Scoring what was found is no end of the stage that found it: its plan stays."""
    told = [json.loads(line) for line in running.events.read_text().splitlines()]
    begun = [
        e["stage"] for e in told if e["kind"] == "progress" and "begins" in e.get("message", "")
    ]
    assert begun == ["unreduced", "g-search", "p-sigmoid"]


def test_the_table_of_trials_is_complete(running):
    with (running.folder / "report" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["search"] for row in rows] == ["p-sigmoid"] * 8 + ["g-search"] * 3


def test_the_report_can_be_written_again(running):
    page = write_report(running.folder)
    assert page.read_text() == running.after["page"]
    assert list(running.folder.rglob("*.tmp")) == []


def test_a_file_whose_place_another_name_takes_goes(running, tmp_path):
    """With other bands a schedule was of the other family; a server refuses two of one."""

    def again():
        parts = (META, running.output.data_sha256, running.study, running.output.selection)
        return Output(tmp_path, *parts, running.output.journal)

    again().write(running.result)
    (written,) = (Schedule.load(path) for path in tmp_path.glob("searched-0.5.json"))
    replace(written, name="local-searched-0.5").save(tmp_path / "local-searched-0.5.json")
    replace(written, name="mine").save(tmp_path / "mine.json")
    again().write(running.result)
    assert {p.stem for p in tmp_path.glob("*.json")} >= {"searched-0.5", "searched-0.375", "mine"}
    assert not (tmp_path / "local-searched-0.5.json").exists()


def test_a_search_that_begins_anew_leaves_what_is_better(running, tmp_path):
    """The first schedules of a search of another kind, or of one that goes on, are poorer ones."""

    def again(**changes):
        return Output(
            tmp_path,
            *(META, running.output.data_sha256, running.study, running.output.selection),
            running.output.journal,
            **changes,
        )

    result = running.result
    again().write(result)
    (written,) = (Schedule.load(path) for path in tmp_path.glob("searched-0.5.json"))
    scores = written.provenance["scores"]
    better = replace(
        written,
        provenance={**written.provenance, "scores": scores | {"value": scores["value"] + 1}},
    )
    better.save(tmp_path / "searched-0.5.json")
    for searched_on in (100, 50):  # how many were searched on makes no other evidence
        known = {**better.provenance["items"], "search": searched_on}
        better = replace(better, provenance={**better.provenance, "items": known})
        better.save(tmp_path / "searched-0.5.json")
        output = again()
        output.write(result)
        assert Schedule.load(tmp_path / "searched-0.5.json") == better
        found = read_search(tmp_path / "report")["schedules"]
        (row,) = (each for each in found if each["name"] == "searched-0.5")
        assert (row["keep"], row["value"]) == (list(better.keep), scores["value"] + 1)
        assert "searched-0.5 of an earlier search scored better and stayed" in str(output)
    versions = written.provenance["versions"] | {"checkpoint": "another"}
    other = replace(better, provenance={**better.provenance, "versions": versions})
    other.save(tmp_path / "searched-0.5.json")
    again().write(result)
    assert Schedule.load(tmp_path / "searched-0.5.json") == written
