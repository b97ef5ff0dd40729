"""Live progress: the counts, the time left, and where they go."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtr_vllm.search.progress import Progress, duration


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def events(tmp_path):
    return tmp_path / "events.jsonl"


def read(events):
    return [json.loads(line) for line in events.read_text().splitlines()]


def test_events_are_lines_of_json(events, capsys):
    clock = Clock()
    progress = Progress(events, clock)
    progress.plan({"one": 10, "two": 30})
    progress.begin("one")
    clock.now += 5
    progress.ran(4, 2.0)
    progress.step("found it", layer=3, count=7)
    progress.end("done", "all is written")
    begins, ran, step, end = read(events)
    assert begins == {
        "time": 1000.0,
        "kind": "progress",
        "message": "one begins",
        "stage": "one",
    }
    assert ran == {
        "time": 1005.0,
        "kind": "progress",
        "stage": "one",
        "requests": 4,
        "planned": 40,
        "seconds_left": 18.0,
    }
    assert step == {
        "time": 1005.0,
        "kind": "step",
        "stage": "one",
        "message": "found it",
        "layer": 3,
        "count": 7,
    }
    assert end == {"time": 1005.0, "kind": "done", "message": "all is written"}
    said = capsys.readouterr()
    assert said.out == ""  # stdout belongs to the command's result
    assert said.err.splitlines() == [
        "search: one begins",
        "search: one: 4 of about 40 requests, about 18 s left",
        "search: one: found it",
        "search: all is written",
    ]


def test_events_are_appended(events):
    Progress(events).end("failed", "once")
    Progress(events).end("done", "once more")
    assert [event["kind"] for event in read(events)] == ["failed", "done"]


def test_without_a_file_people_are_told_all_the_same(capsys):
    Progress().step("found it")
    assert capsys.readouterr().err == "search: start: found it\n"


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(OSError, match="no-such-folder"):
        Progress(tmp_path / "no-such-folder" / "events.jsonl")


def test_lines_come_at_most_every_two_seconds(events):
    clock = Clock()
    progress = Progress(events, clock)
    for _ in range(50):
        clock.now += 0.1
        progress.ran(1, 0.1)
    assert [event["time"] for event in read(events)] == pytest.approx([1000.1, 1002.1, 1004.1])
    assert [event["requests"] for event in read(events)] == [1, 21, 41]


def test_what_a_stage_left_of_its_plan_is_struck():
    progress = Progress()
    progress.plan({"one": 100, "two": 50})
    progress.begin("one")
    progress.ran(30, 3.0)
    assert (progress.planned, progress.seconds_left) == (150, pytest.approx(12.0))
    progress.begin("two")
    assert (progress.planned, progress.seconds_left) == (80, pytest.approx(5.0))
    progress.ran(50, 5.0)
    assert (progress.planned, progress.seconds_left) == (80, 0)


def test_a_stage_may_run_more_than_was_planned():
    progress = Progress()
    progress.plan({"one": 10})
    progress.begin("one")
    progress.ran(15, 1.0)
    progress.ran(0, 0.0)
    assert (progress.planned, progress.seconds_left) == (15, 0)


def test_what_ran_before_the_first_stage_counts_once():
    progress = Progress()
    progress.ran(40, 4.0)
    progress.plan({"unreduced": 40, "more": 20})
    progress.begin("unreduced")
    progress.begin("more")
    assert progress.planned == 60
    assert progress.seconds_left == pytest.approx(2.0)


def test_nothing_is_promised_before_anything_ran():
    progress = Progress()
    progress.plan({"one": 10})
    assert progress.seconds_left is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=8))
def test_no_more_is_left_than_is_planned(ran):
    progress = Progress()
    progress.plan({"a": 50, "b": 50, "c": 50})
    for stage, requests in ran:
        before = progress.planned
        progress.begin(stage)
        assert progress.planned <= before
        progress.ran(requests, requests / 2)
        assert sum(r for _, r in ran) + 150 >= progress.planned
        if progress.seconds_left is not None:
            assert progress.seconds_left >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (600, "10 min"),
        (7169, "119 min"),
        (7200, "2 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_what_runs_aside_leaves_the_plan_of_its_stage(events):
    progress = Progress(events)
    progress.plan({"one": 10, "selection": 5})
    progress.begin("one")
    progress.ran(4, 1.0)
    with progress.aside("selection"):
        progress.ran(5, 1.0)
    progress.found("wrote a", ["a"])
    assert progress.planned == 15
    progress.ran(6, 1.0)
    progress.begin("two")
    assert progress.planned == 15
    (found,) = (event for event in read(events) if event["kind"] == "found")
    assert (found["stage"], found["message"], found["schedules"]) == ("one", "wrote a", ["a"])
