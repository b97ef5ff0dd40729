"""What each command does: refusals before any engine starts, and what it leaves behind."""

import json
import os
import signal

import pytest

from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items
from vtr_vllm.errors import EvaluationFailed
from vtr_vllm.schedules import Schedule, ScheduleBook
from vtr_vllm.search import cli, commands, study
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.engine_pool import EnginePool
from vtr_vllm.search.report_data import read_frontier, read_search
from vtr_vllm.search.session import Backend, split

pytestmark = pytest.mark.usefixtures("blank_figures")

SMALL = ("--budgets", "0.5", "--trials", "4", "--items", "100", "--tolerance", "0.02")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return items(tmp_path_factory.mktemp("data"), 200)


@pytest.fixture
def engines(monkeypatch) -> list[SimulatedEvaluator]:
    """Every engine that was started, simulated."""
    started: list[SimulatedEvaluator] = []

    def start(backend: Backend) -> SimulatedEvaluator:
        started.append(SimulatedEvaluator())
        return started[-1]

    monkeypatch.setattr(Backend, "open", start)
    return started


@pytest.fixture
def no_engine(monkeypatch) -> None:
    """An engine that is started fails the test, and no command would catch it."""

    def start(self, *_):
        pytest.fail("an engine was started")

    monkeypatch.setattr(EnginePool, "__init__", start)


def search(kind, folder, data, *flags) -> int:
    given = ["--out", str(folder), "--model", "demo", "--data", str(data.path)]
    return cli.main([kind, *given, *SMALL, *flags])


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Refusals


@pytest.mark.usefixtures("no_engine")
class TestRefusals:
    def refused(self, capsys, *arguments, code=1) -> str:
        """What the one line of the refusal says."""
        assert cli.main([str(argument) for argument in arguments]) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("vtr search: ")
        assert said.err.count("vtr search: ") == 1
        return said.err

    def search(self, capsys, folder, data, *flags) -> str:
        given = ("--out", folder, "--model", "demo", "--data", data)
        return self.refused(capsys, "all", *given, *flags)

    def test_missing_data(self, tmp_path, capsys):
        said = self.search(capsys, tmp_path / "out", tmp_path / "none.jsonl")
        assert "none.jsonl cannot be read" in said
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_a_faulty_line(self, tmp_path, capsys, data):
        path = tmp_path / "broken.jsonl"
        lines = data.path.read_text().splitlines()
        path.write_text("\n".join([*lines[:7], '{"image": 3}', *lines[8:]]))
        assert f"{path}:8: missing question" in self.search(capsys, tmp_path / "out", path)

    def test_too_few_items(self, tmp_path, capsys):
        few = items(tmp_path, 150)
        said = self.search(capsys, tmp_path / "out", few.path)
        assert "has 150 items; a search wants at least 200" in said
        assert said.count("\n") == 1

    def test_missing_held_out_data(self, tmp_path, capsys, data):
        said = self.search(capsys, tmp_path, data.path, "--heldout", tmp_path / "none.jsonl")
        assert "none.jsonl cannot be read" in said

    def test_held_out_data_that_overlaps(self, tmp_path, capsys, data):
        """Items 0 to 199 are searched on, 197 to 201 are held out."""
        held = items(tmp_path, 5, first=197)
        said = self.search(capsys, tmp_path / "out", data.path, "--heldout", held.path)
        overlap = [line for line in said.splitlines() if "the image and the question of" in line]
        assert overlap == [
            f"{held.path}:{line}: the image and the question of {data.path}:{197 + line}"
            for line in (1, 2, 3)
        ]

    def test_data_without_answers(self, tmp_path, capsys, data):
        without = items(tmp_path, 200, first=300, answered=False)
        said = self.search(capsys, tmp_path / "out", without.path)
        assert f"{without.path} has no answers" in said
        assert "--objective label-free" in said
        said = self.search(capsys, tmp_path / "out", data.path, "--heldout", without.path)
        assert f"{without.path} has no answers" in said

    def test_a_folder_that_is_a_file(self, tmp_path, capsys, data):
        (tmp_path / "out").write_text("")
        assert str(tmp_path / "out") in self.search(capsys, tmp_path / "out", data.path)

    def test_events_that_cannot_be_written(self, tmp_path, capsys, data):
        path = tmp_path / "none" / "events.jsonl"
        said = self.search(capsys, tmp_path / "out", data.path, "--events", path)
        assert str(path) in said

    def test_a_refusal_is_an_event(self, tmp_path, capsys):
        path = tmp_path / "events.jsonl"
        said = self.search(capsys, tmp_path, tmp_path / "none.jsonl", "--events", path)
        (event,) = events(path)
        assert event["kind"] == "failed"
        assert said == f"vtr search: {event['message']}\n"

    def test_a_comparison_without_a_search(self, tmp_path, capsys, data):
        path = tmp_path / "events.jsonl"
        given = ("compare", "--out", tmp_path, "--split", f"a={data.path}", "--events", path)
        assert "run a search into this folder" in self.refused(capsys, *given)
        assert [event["kind"] for event in events(path)] == ["failed"]

    def test_a_report_without_a_search(self, tmp_path, capsys):
        said = self.refused(capsys, "report", "--out", tmp_path)
        assert "run a search into this folder" in said

    def test_a_conversion_of_nothing(self, tmp_path, capsys):
        out = tmp_path / "items.jsonl"
        said = self.refused(capsys, "convert", "llava", tmp_path / "none.json", out)
        assert "none.json cannot be read" in said
        assert not out.exists()


# Searches


def test_a_search_leaves_schedules_a_record_and_a_report(tmp_path, data, engines, capsys):
    path = tmp_path / "events.jsonl"
    assert search("p-sigmoid", tmp_path / "out", data, "--events", str(path)) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.glob("*.json")} == {"g-search.json", "searched-0.5.json"}
    (engine,) = engines
    assert engine.closed
    book = ScheduleBook.from_folder(engine.geometry, out)
    assert book.for_budget(0.5).source == "searched"
    record = read_search(out / "report")
    assert record["meta"]["data"] == data.facts()
    assert record["meta"]["finished"] is True
    trials = (out / "report" / "trials.csv").read_text().splitlines()
    assert len(trials) == 1 + 4 + 3  # the trials of a budget, and a stage for each layer from 2 on
    assert record["meta"]["command"].startswith("vtr search p-sigmoid --out")
    assert record["meta"]["n_vision"] == 16
    assert {s["method"] for s in record["schedules"]} == {"g-search", "p-sigmoid", "searched"}
    assert list((out / "report").glob("*.html"))
    assert read_frontier(out / "report") is None
    said = events(path)
    assert said[-1]["kind"] == "done"
    assert {event["kind"] for event in said} == {"progress", "step", "found", "done"}
    found = [event["schedules"] for event in said if event["kind"] == "found"]
    assert found == [["g-search"], ["searched-0.5"]]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"search: wrote g-search, searched-0.5 to {out}"


def test_a_label_free_search_needs_no_answers(tmp_path, engines):
    data = items(tmp_path, 200, answered=False)
    held = items(tmp_path, 20, first=1000, name="held.jsonl", answered=False)
    out = tmp_path / "out"
    flags = ("--objective", "label-free", "--heldout", str(held.path))
    assert search("p-sigmoid", out, data, *flags) == 0
    assert {p.name for p in out.glob("*.json")} == {"g-search.json", "searched-0.5.json"}
    record = read_search(out / "report")
    assert record["meta"]["data"]["answered"] is False
    assert record["meta"]["unreduced"]["accuracy"] == 1.0  # each answer is its own
    found = [s["accuracy"] for s in record["schedules"]]
    assert all(0 < accuracy <= 1 for accuracy in found)
    assert min(found) < 1
    page = (out / "report" / "index.html").read_text()
    assert "questions have no answers" in page
    assert page.count("without answers: a score is the share") == 2
    assert "of the\ncalibration questions right" not in page


def test_the_same_command_again_asks_nothing(tmp_path, data, engines):
    out = tmp_path / "out"
    assert search("p-sigmoid", out, data) == 0
    written = {p.name: p.read_bytes() for p in out.glob("*.json")}
    assert search("p-sigmoid", out, data) == 0
    assert engines[1].runs == 0
    assert {p.name: p.read_bytes() for p in out.glob("*.json")} == written


def test_a_wider_search_goes_on_from_a_narrower(tmp_path, data, engines):
    assert search("g-search", tmp_path, data) == 0
    assert search("p-sigmoid", tmp_path, data) == 0
    asked = [{(t.candidate, t.item.id) for t in engine.tasks} for engine in engines]
    assert asked[1]
    assert asked[0].isdisjoint(asked[1])


def test_held_out_data_is_compared_at_once_or_later(tmp_path, data, engines):
    held = items(tmp_path, 30, first=1000, name="held.jsonl")
    other = items(tmp_path, 20, first=2000, name="other.jsonl")
    out = tmp_path / "out"
    assert search("p-sigmoid", out, data, "--heldout", str(held.path)) == 0
    frontier = read_frontier(out / "report")
    assert frontier["meta"]["splits"]["heldout"] == held.facts()
    rows = {(row["method"], row["budget"]): row for row in frontier["rows"]}
    assert rows["full", 1.0]["splits"]["heldout"]["n"] == 30
    assert {"searched", "p-sigmoid", "g-search", "fastv", "random", "downsample"} <= {
        method for method, _ in rows
    }

    splits = ["--split", f"a={held.path}", "--split", f"b={other.path}"]
    assert cli.main(["compare", "--out", str(out), *splits]) == 0
    both = read_frontier(out / "report")
    assert set(both["meta"]["splits"]) == {"a", "b"}
    assert {task.item.id for task in engines[1].tasks} == {item.id for item in other.items}
    for row in both["rows"]:
        before = rows[row["method"], row["budget"]]["splits"]
        assert row["splits"].get("a") == before.get("heldout")


def test_a_comparison_refuses_what_was_searched_on(tmp_path, data, engines, capsys):
    changed = items(tmp_path, 200, first=50_000)
    assert search("g-search", tmp_path / "out", changed) == 0
    compare = ["compare", "--out", str(tmp_path / "out")]
    started = len(engines)

    assert cli.main([*compare, "--split", f"a={changed.path}"]) == 1
    assert f"{changed.path}:1: the image and the question" in capsys.readouterr().err

    twice = ["--split", f"a={data.path}", "--split", f"a={data.path}"]
    assert cli.main([*compare, *twice]) == 1
    assert "splits are named a, a" in capsys.readouterr().err

    items(tmp_path, 200, first=60_000)  # the same file, other items
    assert cli.main([*compare, "--split", f"a={data.path}"]) == 1
    assert "is not the data that" in capsys.readouterr().err
    changed.path.unlink()
    assert cli.main([*compare, "--split", f"a={data.path}"]) == 1
    assert f"is not at {changed.path}; say with --data FILE" in capsys.readouterr().err
    assert len(engines) == started


def test_a_comparison_finds_the_data_of_a_search_from_anywhere(
    tmp_path, data, engines, monkeypatch
):
    """The search was told a relative path, and the comparison runs in another folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    own = items(here, 200)
    held = items(tmp_path, 20, first=3000, name="held.jsonl")
    compare = ["compare", "--out", str(here / "out"), "--split", f"a={held.path}"]
    monkeypatch.chdir(here)
    given = ["--out", "out", "--model", "demo", "--data", "items.jsonl"]
    assert cli.main(["g-search", *given, *SMALL]) == 0
    monkeypatch.chdir(there)
    assert cli.main(compare) == 0
    own.path.rename(there / "moved.jsonl")
    assert cli.main(compare) == 1
    assert cli.main([*compare, "--data", "moved.jsonl"]) == 0


def test_items_bound_everything_that_is_searched_on(tmp_path, data, engines):
    """G-Search and the unreduced model too; what was found is scored on the other items as ever."""
    more = items(tmp_path, 600)
    assert search("p-sigmoid", tmp_path / "out", more, "--items", "150") == 0
    asked = {task.item.id for task in engines[0].tasks}
    first, rest = split(more)
    assert asked == {item.id for item in (*first.items[:150], *rest.items)}
    found = Schedule.load(tmp_path / "out" / "g-search.json")
    known = found.provenance["items"]
    assert (known["sha256"], known["search"], known["scores"]) == (more.sha256, 150, 300)


def test_a_search_at_its_time_limit_ends_well_and_goes_on(
    tmp_path, data, engines, monkeypatch, capsys
):
    """With the time over as soon as G-Search has begun its second stage."""
    out, path = tmp_path / "out", tmp_path / "events.jsonl"
    now = iter([0.0, *[1.0] * 8])  # seconds, each time somebody looks
    monkeypatch.setattr(study, "monotonic", lambda: next(now, 61.0))
    monkeypatch.setattr(commands, "monotonic", lambda: 0.0)
    assert search("p-sigmoid", out, data, "--max-minutes", "1", "--events", str(path)) == 0
    last = events(path)[-1]
    assert last["kind"] == "done"
    assert last["message"] == (
        f"the time limit of 1 minutes is reached; wrote nothing yet to {out}: the same command goes"
        " on from here"
    )
    monkeypatch.undo()
    monkeypatch.setattr(Backend, "open", lambda backend: SimulatedEvaluator())
    assert search("p-sigmoid", out, data) == 0
    assert (out / "searched-0.5.json").exists()


def test_a_time_limit_that_ends_before_the_first_answer_is_no_failure(
    tmp_path, data, engines, monkeypatch
):
    """And what is read and loaded first does not count."""
    out, path = tmp_path / "out", tmp_path / "events.jsonl"
    opened = []
    monkeypatch.setattr(commands, "monotonic", lambda: 100.0 * len(opened))
    monkeypatch.setattr(
        Backend, "open", lambda backend: opened.append(backend) or SimulatedEvaluator()
    )
    now = iter([159.0])
    monkeypatch.setattr(study, "monotonic", lambda: next(now, 160.0))
    assert search("p-sigmoid", out, data, "--max-minutes", "1", "--events", str(path)) == 0
    assert (
        "the time limit of 1 minutes is reached; wrote nothing yet" in events(path)[-1]["message"]
    )
    monkeypatch.setattr(study, "monotonic", lambda: 1000.0)
    for flags in ((), ("--dry-run",)):
        assert search("p-sigmoid", tmp_path / "other", data, "--max-minutes", "1", *flags) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("llava", "--count", "9"), "--count is for demo and photo, and the format is llava"),
        (("vlmevalkit", "--turns", "all"), "--turns is for llava, and"),
        (("demo", "--metric", "anls"), "--metric is for llava and vlmevalkit, and"),
    ],
)
def test_a_flag_of_another_format_is_refused(tmp_path, capsys, given, said):
    kind, *flags = given
    assert cli.main(["convert", kind, "x", str(tmp_path / "out.jsonl"), *flags]) == 1
    assert said in capsys.readouterr().err


def test_a_dry_run_measures_and_writes_nothing(tmp_path, data, engines, capsys):
    out = tmp_path / "out"
    assert search("p-sigmoid", out, data, "--dry-run") == 0
    *stages, total = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0] for line in stages]
    assert names == ["unreduced", "g-search", "p-sigmoid", "selection"]
    requests = [int(line.split()[-2]) for line in stages]
    assert total.startswith(f"in all about {sum(requests)} requests, ")
    assert list(out.glob("*.json")) == []
    assert not (out / "report").exists()
    assert search("p-sigmoid", out, data) == 0  # what it measured is not measured again
    asked = [{(t.candidate, t.item.id) for t in engine.tasks} for engine in engines]
    assert asked[0].isdisjoint(asked[1])
    cost = read_search(out / "report")["cost"]
    # what is planned is what is then paid for, and the dry run by itself
    assert [each["stage"] for each in cost if each["stage"] != "dry run"] == names


# Failures


class Ending(SimulatedEvaluator):
    """Ends in its third run."""

    def __init__(self, how) -> None:
        super().__init__()
        self.how = how

    def run(self, tasks):
        if self.runs == 2:
            self.how()
        return super().run(tasks)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise EvaluationFailed("the engine's own reason")


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        (terminate, 143, "stopped"),
        (interrupt, 130, "stopped"),
        (fail, 1, "the engine's own reason"),
    ],
)
def test_a_search_that_is_stopped_goes_on(
    tmp_path, data, engines, monkeypatch, capsys, how, code, message
):
    out, path = tmp_path / "out", tmp_path / "events.jsonl"
    ending = Ending(how)
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "open", lambda backend: ending)
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(search("g-search", out, data, "--events", str(path)))
    assert ended.value.code == code
    assert ending.closed
    last = events(path)[-1]
    assert (last["kind"], last["message"]) == ("failed", message)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(out.glob("*.json")) == []

    assert search("g-search", out, data) == 0
    (engine,) = engines
    again = {(task.candidate, task.item.id) for task in engine.tasks}
    assert again.isdisjoint((task.candidate, task.item.id) for task in ending.tasks)


def test_a_conversion_says_what_it_wrote(tmp_path, capsys):
    out = tmp_path / "items.jsonl"
    assert cli.main(["convert", "demo", "test", str(out), "--count", "3"]) == 0
    assert capsys.readouterr().out == "3 items written\n"
    assert len(Dataset.load(out)) == 3


def test_a_comparison_asks_as_the_search_did(tmp_path, data, monkeypatch, capsys):
    opened = []

    def start(backend):
        opened.append(backend.options)
        made = SimulatedEvaluator()
        made.versions |= {"max_tokens": str(backend.options.max_tokens), "engine_args": '{"a": 1}'}
        made.versions["vtr"] = str(len(opened))
        return made

    monkeypatch.setattr(Backend, "open", start)
    out, held = tmp_path / "out", items(tmp_path, 20, first=3000, name="held.jsonl")
    assert search("g-search", out, data, "--max-tokens", "4") == 0
    compare = ["compare", "--out", str(out), "--split", f"a={held.path}"]
    assert cli.main(compare) == 0
    assert (opened[1].max_tokens, opened[1].engine_args) == (4, {"a": 1})
    assert "warning: other than in the search: vtr 2 and not 1\n" in capsys.readouterr().err
    assert cli.main([*compare, "--max-tokens", "5"]) == 0
    assert opened[2].max_tokens == 5
    assert "max_tokens 5 and not 4, vtr 3 and not 1" in capsys.readouterr().err
