"""What a search leaves behind."""

import json

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items, options
from vtr_vllm.schedules import Schedule, ScheduleBook
from vtr_vllm.search import pipeline, records, report_data
from vtr_vllm.search.journal import Journal
from vtr_vllm.search.pipeline import HeldOutScores
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.session import split
from vtr_vllm.search.study import Cost, Study

SETTINGS = options("p-sigmoid", budgets=[0.5, 0.375], trials=4, seed=3)
META = {
    "model": "simulated",
    "fingerprint": "5L",
    "n_vision": 16,
    "data": {"path": "items.jsonl", "sha256": "0" * 64, "n": 200},
    "seed": 3,
    "objective": "accuracy",
    "tolerance": 0.005,
    "versions": {"model": "simulated"},
    "command": "vtr search p-sigmoid",
    "date": "2025-01-01",
}


class Search:
    """A small search that came to its end."""

    def __init__(self, folder) -> None:
        self.data = items(folder, 200)
        first, rest = split(self.data)
        evaluator = SimulatedEvaluator()
        self.journal = Journal("sqlite://", "test", evaluator.versions, SETTINGS.seed)
        self.study, self.selection = (
            Study(evaluator, part, self.journal, "accuracy", Progress()) for part in (first, rest)
        )
        self.result = pipeline.run(self.study, SETTINGS)
        self.scored = HeldOutScores(self.selection)
        self.chosen = self.scored.best(self.result)
        self.schedules = [
            records.served(scored, self.study, self.selection, SETTINGS.seed, self.data.sha256)
            for scored in self.chosen
        ]

    def record(self):
        states = self.journal.states()
        return records.search_record(
            META, self.study, self.scored, self.result, self.schedules, states
        )


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    return Search(tmp_path_factory.mktemp("records"))


def test_a_schedule_is_named_by_its_budget_or_its_method(search):
    names = {schedule.name: schedule for schedule in search.schedules}
    assert set(names) == {"g-search", "searched-0.5", "searched-0.375"}
    assert names["g-search"].budget is None
    assert names["searched-0.5"].budget == 0.5
    assert names["searched-0.5"].method == "p-sigmoid"
    for scored, schedule in zip(search.chosen, search.schedules, strict=True):
        assert schedule.keep == scored.schedule.keep
        assert schedule.rules == scored.schedule.rules


def test_a_schedule_says_where_it_comes_from(search):
    for scored, schedule in zip(search.chosen, search.schedules, strict=True):
        provenance = schedule.provenance
        assert provenance["items"] == {
            "sha256": search.data.sha256,
            "search": 100,
            "scores": 100,
            "scored_on": search.selection.dataset.sha256,
        }
        assert (provenance["objective"], provenance["seed"]) == ("accuracy", 3)
        assert provenance["versions"]["model"] == "simulated"
        assert "scikit-optimize" in provenance["versions"]
        scores = provenance["scores"]
        assert scores["accuracy"] == scored.evaluation.accuracy
        assert scores["low"] <= scores["accuracy"] <= scores["high"]
        assert (scores["n"], scores["value"]) == (100, scored.evaluation.value)


def test_a_server_can_serve_the_folder(search, tmp_path):
    paths = records.write_schedules(tmp_path / "new" / "folder", search.schedules)
    assert [path.name for path in paths] == [f"{s.name}.json" for s in search.schedules]
    assert [Schedule.load(path) for path in paths] == search.schedules
    book = ScheduleBook.from_folder(search.study.geometry, tmp_path / "new" / "folder")
    assert book.for_budget(0.5).source == "searched"
    assert book.by_name("g-search") in search.schedules


def test_the_record_is_what_the_report_reads(search, tmp_path):
    path = tmp_path / "deep" / "search.json"
    record = search.record()
    records.write_json(path, record)
    read = json.loads(path.read_text())
    assert read == record
    report_data.Search.model_validate(read)


def test_the_record_holds_every_schedule_with_its_score(search):
    record = search.record()
    methods = [(each["method"], each["budget"]) for each in record["schedules"]]
    assert sorted(methods, key=str) == sorted(
        [
            ("g-search", None),
            ("p-sigmoid", 0.5),
            ("p-sigmoid", 0.375),
            ("searched", 0.5),
            ("searched", 0.375),
        ],
        key=str,
    )
    assert len(record["trials"]) == SETTINGS.trials * len(SETTINGS.budgets)
    assert {trial["search"] for trial in record["trials"]} == {"p-sigmoid"}
    assert [each["name"] for each in record["g_search"]] == ["g-search"]
    assert record["rules"] is None
    whole = search.selection.unreduced()
    assert record["meta"]["unreduced"]["accuracy"] == whole.accuracy
    assert set(record["journal"]) == {"done"}


def test_making_the_record_runs_nothing_and_counts_nothing(search):
    runs = search.study._evaluator.runs
    before = records.costs(search.study, search.selection)
    search.record()
    record = search.record()
    assert search.study._evaluator.runs == runs
    counted = {cost["stage"]: cost["naive_requests"] for cost in record["cost"]}
    assert counted == {stage: cost.naive_requests for stage, cost in before.items()}


def test_costs_are_summed_over_the_studies(search):
    total = records.costs(search.study, search.selection)
    assert set(total) == {"unreduced", "g-search", "p-sigmoid", "selection"}
    assert total["p-sigmoid"] == search.study.costs["p-sigmoid"]
    both = [study.costs["unreduced"] for study in (search.study, search.selection)]
    assert total["unreduced"].requests == sum(cost.requests for cost in both) == 200
    assert total["selection"].requests == 100 * len(search.schedules)
    assert sum(cost.requests for cost in total.values()) == len(search.study._evaluator.tasks)
    assert records.costs() == {}
    assert records.costs(search.study) == search.study.costs
    assert all(isinstance(cost, Cost) for cost in total.values())


def test_a_file_is_written_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "search.json"
    records.write_json(path, {"first": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, {"second": [1, float("nan")]})
    assert json.loads(path.read_text()) == {"first": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_lies_in_a_folder_of_its_own(tmp_path):
    """A server reads every *.json of the folder itself as a schedule."""
    assert records.report_folder(tmp_path).parent == tmp_path
