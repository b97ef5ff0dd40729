"""What a command holds while it runs; and a whole search that is killed and goes on."""

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.vtr_vllm.search import resumable
from tests.vtr_vllm.search.simulated import SimulatedEvaluator, items
from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.schedules import Schedule
from vtr_vllm.search.answers import EngineOptions
from vtr_vllm.search.calibration import Dataset, Turn
from vtr_vllm.search.candidates import unreduced
from vtr_vllm.search.journal import Begun
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.report_data import read_search
from vtr_vllm.search.session import LEAST_ITEMS, Backend, open_session, split

OPTIONS = EngineOptions("simulated")

# Every process below is a fork of one that has loaded the search: it starts in no time.
_PROCESSES = get_context("forkserver")
_PROCESSES.set_forkserver_preload([resumable.__name__])


class Running:
    """A search in a process of its own."""

    def __init__(self, folder: Path, target: Callable = resumable.search) -> None:
        ours, theirs = _PROCESSES.Pipe()
        self.process: BaseProcess = _PROCESSES.Process(target=target, args=(folder, theirs))
        self.process.start()
        theirs.close()
        self._pipe: Connection = ours

    def heard(self) -> bytes:
        """What it says next; nothing once it has gone."""
        try:
            return self._pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            return b""

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def finish(self) -> None:
        while self.heard():
            pass
        self.process.join()
        assert self.process.exitcode == 0


def kill_at(folder: Path, target: Callable, moment: random.Random, runs: int) -> bool:
    """Start the search, kill it at some moment; False if it came to its end before.

    Before the engine runs, where a process reads what is there, or around one of its next ``runs``.
    """
    running = Running(folder, target)
    runs = moment.randrange(runs)
    for _ in range(runs):
        if running.heard() == b"end":
            running.finish()
            return False
    time.sleep(moment.uniform(0, 2 * resumable.DELAY if runs else 0.5))
    running.kill()
    return running.process.exitcode == -signal.SIGKILL


def rows(folder: Path) -> dict[int, tuple]:
    """The journal's rows by id, as another program sees them."""
    columns = "id, state, candidate, items, outcomes, stage, started"
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'evaluations'")
        if not exists.fetchall():
            return {}
        found = connection.execute(f"SELECT {columns} FROM evaluations").fetchall()
    return {row[0]: row[1:] for row in found}


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "schedules").glob("*.json")}


def check_usable(folder: Path) -> None:
    """What a killed search leaves is whole: schedules that a server takes, a record that is read."""
    for path in (folder / "schedules").glob("*.json"):
        assert Schedule.load(path).name == path.stem
    if (folder / "schedules" / "report").exists():
        found = read_search(folder / "schedules" / "report")
        assert found["schedules"]


def check_kept(before: dict[int, tuple], after: dict[int, tuple]) -> None:
    """No row is lost or rewritten, but for what was running and became interrupted."""
    for number, (state, *facts) in before.items():
        allowed = {"running", "interrupted"} if state == "running" else {state}
        assert after[number][0] in allowed
        assert list(after[number][1:]) == facts


FEW = {"kind": "p-sigmoid", "budgets": (0.625, 0.5)}


# Two kinds of stages, killed here and there; all of them, killed every few runs.
@pytest.mark.parametrize(
    ("changes", "most", "runs"),
    [
        pytest.param(FEW, 3, 8, id="sample"),
        pytest.param({}, 20, 4, id="dense", marks=pytest.mark.slow),
    ],
)
def test_a_search_killed_at_any_moment_goes_on_to_the_same_end(tmp_path, changes, most, runs):
    search = partial(resumable.search, **changes)
    whole = tmp_path / "whole"
    Running(whole, search).finish()
    expected = written(whole)
    assert any(name.startswith("searched-") for name in expected)

    moment = random.Random(0)
    kills = 0
    while kills < most:  # one search as a rule; a second if the first was through too soon
        folder = tmp_path / f"killed-after-{kills}"
        seen: dict[int, tuple] = {}
        while kills < most and kill_at(folder, search, moment, runs):
            kills += 1
            found = rows(folder) if (folder / "journal.sqlite").exists() else {}
            check_kept(seen, found)
            check_usable(folder)
            seen = found
        Running(folder, search).finish()
        found = rows(folder)
        check_kept(seen, found)
        states = Counter(state for state, *_ in found.values())
        done = Counter((c, i) for state, c, i, *_ in found.values() if state == "done")
        assert set(states) <= {"done", "interrupted"}
        assert set(done.values()) == {1}
        uninterrupted = {(c, i): outcomes for _, c, i, outcomes, *_ in rows(whole).values()}
        resumed = {(c, i): o for s, c, i, o, *_ in found.values() if s == "done"}
        assert resumed == uninterrupted
        assert written(folder) == expected
    if most > 10:  # of few kills, none may have met the engine at work
        assert states["interrupted"] > 0


def _loaded(folder: Path, pipe: Connection) -> None:
    import sys

    from vtr_vllm.search import cli  # noqa: F401

    pipe.send_bytes(" ".join(sys.modules).encode())


def test_the_search_loads_no_engine_before_it_is_asked_to(tmp_path):
    running = Running(tmp_path, _loaded)
    modules = running.heard().decode().split()
    running.finish()
    assert "vtr_vllm.search.commands" in modules
    assert {"torch", "vllm", "transformers", "matplotlib"}.isdisjoint(modules)


class Ours(Backend):
    """A simulated engine, and whether it was started and closed."""

    started: list[SimulatedEvaluator] = []  # noqa: RUF012

    def open(self) -> SimulatedEvaluator:
        self.started.append(SimulatedEvaluator())
        return self.started[-1]


@pytest.fixture
def backend():
    Ours.started.clear()
    return Ours(OPTIONS, engines=1)


def opened(backend: Backend, folder: Path, journal: str | None = None):
    return open_session(backend, folder, journal, "accuracy", 0, Progress())


def test_a_second_process_is_refused(tmp_path, backend):
    first = Running(tmp_path)
    assert first.heard() == b"run"
    with (
        pytest.raises(ConfigurationError, match=f"another process writes to {tmp_path}; wait"),
        opened(backend, tmp_path),
    ):
        pass
    assert backend.started == []
    first.kill()
    with opened(backend, tmp_path):  # the lock went with its process
        assert len(backend.started) == 1


def test_another_folder_is_free(tmp_path, backend):
    with opened(backend, tmp_path / "one"), opened(backend, tmp_path / "other"):
        assert len(backend.started) == 2


def test_everything_is_given_back(tmp_path, backend):
    with opened(backend, tmp_path) as session:
        study = session.study(items(tmp_path, 3))
        assert study.unreduced().complete
    assert backend.started[0].closed
    assert (tmp_path / "journal.sqlite").exists()

    with pytest.raises(EvaluationFailed), opened(backend, tmp_path):
        raise EvaluationFailed("inside")
    assert backend.started[1].closed
    with opened(backend, tmp_path) as session:
        study = session.study(items(tmp_path, 3))
        assert study.evaluate("again", [unreduced(study.geometry)])[0].complete
    assert backend.started[2].runs == 0


def test_outcomes_that_an_earlier_release_computed_otherwise_are_not_taken(
    tmp_path, backend, monkeypatch
):
    for meaning, is_run in (("1", True), ("1", False), ("2", True)):
        monkeypatch.setattr("vtr_vllm.search.session.MEANING", meaning)
        with opened(backend, tmp_path) as session:
            assert session.study(items(tmp_path, 3)).unreduced().complete
        assert (backend.started[-1].runs > 0) == is_run


def test_a_journal_that_cannot_be_opened_ends_the_engines(tmp_path, backend):
    with (
        pytest.raises(ConfigurationError, match="cannot be opened"),
        opened(backend, tmp_path, f"sqlite:///{tmp_path}"),
    ):
        pass
    assert all(evaluator.closed for evaluator in backend.started)


def test_a_journal_may_lie_elsewhere(tmp_path, backend):
    with opened(backend, tmp_path / "out", f"sqlite:///{tmp_path / 'rows.sqlite'}"):
        pass
    assert (tmp_path / "rows.sqlite").exists()
    assert not (tmp_path / "out" / "journal.sqlite").exists()


def test_two_folders_that_share_a_journal_never_take_each_other_for_ended(tmp_path, backend):
    """Neither do two hosts whose folders have the same path: nothing of the path is in the id."""
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    data = items(tmp_path, 3)
    whole = SimulatedEvaluator()
    begun = [Begun(unreduced(whole.geometry), "items", 0, 3)]
    with opened(backend, tmp_path / "one" / "out", url) as one:
        one.journal.begin("stage", begun)
        with opened(backend, tmp_path / "two" / "out", url) as two:
            assert two.journal.states() == {}
        assert one.journal.states() == {"running": 1}
    (tmp_path / "one").rename(tmp_path / "moved")  # as another mount has it
    with opened(backend, tmp_path / "moved" / "out", url) as again:
        assert again.journal.states() == {"interrupted": 1}
        assert again.study(data).unreduced().complete


def test_a_spoilt_id_is_named(tmp_path, backend):
    (tmp_path / ".search-id").write_text("/out\n")
    with (
        pytest.raises(ConfigurationError, match=r"\.search-id holds no id of a search; remove it"),
        opened(backend, tmp_path),
    ):
        pass
    assert backend.started[0].closed


@pytest.mark.parametrize(
    ("count", "search"), [(200, 100), (299, 100), (334, 200), (499, 200), (500, 300)]
)
def test_the_split_is_in_whole_blocks_and_loses_nothing(tmp_path, count, search):
    data = items(tmp_path, count)
    first, rest = split(data)
    assert (len(first), len(rest)) == (search, count - search)
    assert {*first.items, *rest.items} == {*data.items}


def showing(data: Dataset, images: Callable[[int], Sequence[str]]) -> Dataset:
    """The same items, which show these images: the last by itself, others in turns before it."""
    shown = []
    for number, item in enumerate(data.items):
        *earlier, last = images(number)
        turns = tuple(Turn(item.image, "?", "!", image) for image in earlier)
        shown.append(replace(item, image_hash=last, history=turns))
    return Dataset(data.path, tuple(shown))


@pytest.mark.parametrize(
    "images",
    [
        lambda number: [f"{number % 60}"],  # five questions about each of 60 images, shuffled
        lambda number: [f"{number // 5}"],
        lambda number: [f"{number % 40}", f"{number % 80}"],  # two together, and over others
        lambda number: [f"{number}"] if number % 3 else ["the same"],
    ],
)
def test_no_image_is_in_both_parts_of_a_split(tmp_path, images):
    data = showing(items(tmp_path, 300), images)
    first, rest = split(data)
    shown = [
        {image for item in part.items for image in item.image_hashes} for part in (first, rest)
    ]
    assert not shown[0] & shown[1]
    assert {*first.items} | {*rest.items} == {*data.items}
    assert len(first) + len(rest) == len(data)
    assert 50 <= len(first) <= 100
    # however the lines are sorted; those that go together stand together
    other_way = Dataset(data.path, data.items[::-1])
    for part, same in zip((first, rest), split(other_way), strict=True):
        assert {*part.items} == {*same.items}
        changes = sum(a != b for a, b in pairwise(part.groups))
        assert changes + 1 == len(set(part.groups))


def test_items_that_all_share_an_image_are_refused(tmp_path):
    data = showing(items(tmp_path, 300), lambda number: ["the same"] if number < 260 else ["a"])
    with pytest.raises(ConfigurationError, match="so many items share images that 40 can be"):
        split(data)


def test_too_few_items_are_refused(tmp_path):
    data = items(tmp_path, LEAST_ITEMS - 1)
    with pytest.raises(ConfigurationError, match=f"has 199 items; .* at least {LEAST_ITEMS}"):
        split(data)


def test_a_file_that_is_sorted_by_kind_is_searched_on_all_of_them(tmp_path):
    """A candidate is given up by the first items: they are like the rest."""
    data = items(tmp_path, 400)
    kinds = [kind for kind in "abcd" for _ in range(100)]
    ordered = [replace(item, kind=kind) for item, kind in zip(data.items, kinds, strict=True)]
    for part in split(Dataset(data.path, tuple(ordered))):
        for block in (part.items[:100], part.items[-100:]):
            assert all(12 <= sum(item.kind == kind for item in block) <= 38 for kind in "abcd")
