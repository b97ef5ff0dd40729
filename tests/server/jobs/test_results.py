"""Publishing: a server must accept the folder afterwards, or nothing is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.server.jobs.fake_search import GEOMETRY
from vtr_server.jobs.results import load_schedules, publish, report_file
from vtr_vllm.errors import GeometryMismatch, JobConflict, RequestError, ScheduleError
from vtr_vllm.schedules import ModelGeometry, Schedule, ScheduleBook, fastv


def schedule(name: str, budget: float, geometry: ModelGeometry = GEOMETRY) -> Schedule:
    form = fastv(geometry, budget)
    return Schedule(name, geometry, form.keep, form.rules, "g-search", budget=budget)


def found(*schedules: Schedule) -> dict[str, Schedule]:
    return {schedule.name: schedule for schedule in schedules}


HALF, QUARTER = schedule("half", 0.5), schedule("quarter", 0.25)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_server_gets_what_was_published(tmp_path: Path) -> None:
    files = publish(found(HALF, QUARTER), None, tmp_path)
    assert files == {"half": tmp_path / "half.json", "quarter": tmp_path / "quarter.json"}
    book = ScheduleBook.from_folder(GEOMETRY, tmp_path)
    assert book.for_budget(0.25).schedule == QUARTER
    assert load_schedules(tmp_path) == found(HALF, QUARTER)


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    publish(found(HALF, QUARTER), ["half", "half"], tmp_path)
    assert list(content(tmp_path)) == ["half.json"]


def test_a_schedule_of_the_same_name_is_replaced_where_it_lies(tmp_path: Path) -> None:
    HALF.save(tmp_path / "by-hand.json")
    better = dataclasses.replace(HALF, provenance={"score": 1})
    publish(found(better), None, tmp_path)
    assert list(content(tmp_path)) == ["by-hand.json"]
    assert Schedule.load(tmp_path / "by-hand.json") == better
    assert '"score"' in (tmp_path / "by-hand.json").read_text()


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Schedule, "save", closed)
    with pytest.raises(JobConflict, match=rf"{tmp_path} cannot be written \(Permission denied\)"):
        publish(found(HALF), None, tmp_path)


def test_a_file_of_that_name_with_another_schedule_stays(tmp_path: Path) -> None:
    QUARTER.save(tmp_path / "half.json")
    before = content(tmp_path)
    with pytest.raises(JobConflict, match=r"half\.json .* holds the schedule quarter"):
        publish(found(HALF), None, tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("there", "kind", "said"),
    [
        (schedule("rival", 0.5), ScheduleError, "both claim budget 0.5"),
        (
            schedule("other-model", 0.25, dataclasses.replace(GEOMETRY, layers=8)),
            GeometryMismatch,
            "search a schedule for this model",
        ),
    ],
)
def test_a_folder_that_would_be_refused_stays(
    tmp_path: Path, there: Schedule, kind: type[ScheduleError], said: str
) -> None:
    there.save(tmp_path / "there.json")
    before = content(tmp_path)
    with pytest.raises(kind, match=said):
        publish(found(schedule("an-eighth", 0.1875), HALF), None, tmp_path)
    assert content(tmp_path) == before


def test_a_folder_with_a_broken_file_stays(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ScheduleError, match=r"broken\.json"):
        publish(found(HALF), None, tmp_path)
    assert list(content(tmp_path)) == ["broken.json"]


def test_two_of_one_budget_among_the_new(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="both claim"):
        publish(found(HALF, schedule("rival", 0.5)), None, tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("names", [["nosuch"], ["half", "../half"]])
def test_what_was_not_found_is_named(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(RequestError, match=r"no schedule .*; the job found half"):
        publish(found(HALF), names, tmp_path)
    assert content(tmp_path) == {}


def test_nothing_found_is_nothing_to_publish(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the job found none"):
        publish({}, None, tmp_path)


def test_files_of_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert report_file(tmp_path, "index.html") is None
    report.mkdir()
    (report / "index.html").touch()
    (tmp_path / "secret.json").touch()
    assert report_file(tmp_path, "index.html") == report / "index.html"
    for name in ("..", ".", "", "../secret.json", "x/../index.html", "index.html\n", "nosuch"):
        assert report_file(tmp_path, name) is None
